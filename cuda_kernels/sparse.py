"""Sparse matrices and their products: CSR, and a compact format of 8-bit column distances.

A matrix copies its indices and checks them once, when it is made. Products accept only such matrices, and refuse one
whose indices were changed since, so no kernel sees unchecked indices. Values may be changed in place.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch

from .launch import (
    LARGEST_INDEX,
    Checked,
    Launch,
    ceil_div,
    check_kernel,
    check_not_empty,
    check_same_device,
    check_tensor,
    check_unchanged,
    multiprocessors,
    output_like,
    own_copy,
    shared_memory_limit,
)

SPMV_KERNELS = ("spmv_thread_per_row", "spmv_warp_per_row")
SPMM_KERNELS = ("spmm_thread_per_output", "spmm_row_split")
LONGEST_STEP = 255


@dataclass(frozen=True)
class CSR:
    """A sparse (m, k) matrix: pointers (m + 1,) int32; columns (nnz,) int32, rising in each row; values (nnz,) float32.

    Raises ValueError if pointers decrease or do not span the values, or a column is out of range or out of order.
    """

    shape: tuple[int, int]
    pointers: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    checked: Checked = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        m, k = _sizes(self.shape)
        check_tensor("values", self.values, torch.float32, (None,))
        check_tensor("pointers", self.pointers, torch.int32, (m + 1,))
        check_tensor("columns", self.columns, torch.int32, self.values.shape)
        check_same_device(pointers=self.pointers, columns=self.columns, values=self.values)
        _keep_copies(self, "pointers", "columns")
        _check_pointers(self.pointers, self.nnz)
        if self.nnz and not (int(self.columns.min()) >= 0 and int(self.columns.max()) < k):
            raise ValueError(
                f"a column index is out of range: columns run from {int(self.columns.min())} to "
                f"{int(self.columns.max())} in a matrix of {k} columns"
            )
        falls = self.columns[1:] <= self.columns[:-1]
        starts = torch.zeros(self.nnz + 1, dtype=torch.bool, device=falls.device)
        starts[self.pointers.long()] = True
        if self.nnz and bool((falls & ~starts[1:-1]).any()):
            raise ValueError("columns must rise within each row, without duplicates; sort and add up the entries first")

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Stored entries as a share of all entries."""
        return self.nnz / (self.shape[0] * self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return 8 * self.nnz + 4 * (self.shape[0] + 1)

    @staticmethod
    def from_dense(a: torch.Tensor) -> CSR:
        """Convert a float32 (m, k) tensor, in bands of rows so that indices need little memory."""
        check_tensor("a", a, torch.float32, (None, None))
        m, k = a.shape
        check_not_empty("a", m, k)
        counts, columns, values = [], [], []
        for band in a.split(max(1, (1 << 26) // k)):
            row, column = band.nonzero(as_tuple=True)
            counts.append(torch.bincount(row, minlength=len(band)))
            columns.append(column.int())
            values.append(band[row, column])
        pointers = torch.zeros(m + 1, dtype=torch.int32, device=a.device)
        pointers[1:] = torch.cat(counts).cumsum(0)
        return CSR((m, k), pointers, torch.cat(columns), torch.cat(values))

    def to_torch(self) -> torch.Tensor:
        """Return the matrix as torch's sparse CSR tensor (cuSPARSE's input), which shares the arrays."""
        check_unchanged(self.checked)
        with warnings.catch_warnings():  # torch warns once that sparse CSR tensors are in beta
            warnings.simplefilter("ignore", UserWarning)
            return torch.sparse_csr_tensor(self.pointers, self.columns, self.values, self.shape, check_invariants=False)


@dataclass(frozen=True)
class Delta8:
    """A sparse (m, k) matrix with 8-bit column distances; make it with `compress`.

    A row is a sequence of quads of 4 entries: quads pointers[i] to pointers[i + 1]. An entry's column is the sum of the
    row's distances up to it. Entries of value 0 bridge gaps over 255 and pad rows to whole quads; so x must be finite.
    distances: uint8; values: float32, or int8 times scales (m,) float32.
    """

    shape: tuple[int, int]
    nnz: int
    pointers: torch.Tensor
    distances: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor | None = None
    checked: Checked = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        m, k = _sizes(self.shape)
        if self.values.dtype not in (torch.float32, torch.int8):
            raise TypeError(f"values must be float32 or int8, but are {self.values.dtype}")
        check_tensor("values", self.values, self.values.dtype, (None,))
        check_tensor("distances", self.distances, torch.uint8, self.values.shape)
        check_tensor("pointers", self.pointers, torch.int32, (m + 1,))
        if (self.values.dtype == torch.int8) != (self.scales is not None):
            raise ValueError("int8 values need scales, one per row, and float32 values take none")
        if self.scales is not None:
            check_tensor("scales", self.scales, torch.float32, (m,))
        check_same_device(pointers=self.pointers, distances=self.distances, values=self.values, scales=self.scales)
        _keep_copies(self, "pointers", "distances")
        if self.values.numel() % 4:
            raise ValueError(f"{self.values.numel()} entries are not whole quads of 4; make the matrix with compress")
        _check_pointers(self.pointers, self.values.numel() // 4)
        if self._last_columns() >= k:
            raise ValueError(f"a column index is out of range: distances lead past the {k} columns")

    def _last_columns(self) -> int:
        """Return the largest column that any row's distances add up to."""
        quads = self.distances.view(-1, 4).sum(1, dtype=torch.int64)
        total = torch.cat([quads.new_zeros(1), quads.cumsum(0)])
        ends = self.pointers.long()
        return int((total[ends[1:]] - total[ends[:-1]]).max())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.pointers, self.distances, self.values, self.scales)
        return sum(array.numel() * array.element_size() for array in arrays if array is not None)


def _sizes(shape: tuple[int, int]) -> tuple[int, int]:
    """Check the shape of a sparse matrix and return it."""
    if not isinstance(shape, tuple) or [type(size) for size in shape] != [int, int]:
        raise TypeError(f"shape is {shape!r}, but must be a tuple of two whole numbers, (rows, columns)")
    check_not_empty("the sparse matrix", *shape)
    if max(shape) >= LARGEST_INDEX:
        raise ValueError(f"the sparse matrix has shape {tuple(shape)}, which overflows 32-bit indexing")
    return shape


def _keep_copies(matrix: CSR | Delta8, *names: str) -> None:
    """Replace index arrays by private copies, before they are checked, and record how often each was changed."""
    for name in names:
        object.__setattr__(matrix, name, own_copy(getattr(matrix, name)))
    copies = (getattr(matrix, name) for name in names)
    object.__setattr__(matrix, "checked", tuple((indices, indices._version) for indices in copies))


def _check_matrix(matrix: CSR | Delta8, *kinds: type) -> None:
    """Raise TypeError or ValueError unless the matrix is of one of the kinds and unchanged since it was checked."""
    if not isinstance(matrix, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"matrix must be a {wanted} matrix, but is a {type(matrix).__name__}; use CSR.from_dense")
    check_unchanged(matrix.checked)


def _check_pointers(pointers: torch.Tensor, entries: int) -> None:
    if bool((pointers[1:] < pointers[:-1]).any()):
        row = int((pointers[1:] < pointers[:-1]).nonzero()[0])
        raise ValueError(f"row pointers decrease at row {row}; they must rise from 0 to the number of entries")
    first, last = int(pointers[0]), int(pointers[-1])
    if (first, last) != (0, entries):
        raise ValueError(f"row pointers run from {first} to {last}, but must run from 0 to {entries}")


def compress(matrix: CSR, dtype: torch.dtype = torch.float32) -> Delta8:
    """Convert a matrix to 8-bit distances, with float32 values, or int8 values and one scale per row (maximum / 127).

    ValueError if a value to be stored as int8 is infinite or NaN.
    """
    if dtype not in (torch.float32, torch.int8):
        raise TypeError(f"values can be stored as torch.float32 or torch.int8, not {dtype}")
    _check_matrix(matrix, CSR)
    if dtype == torch.int8 and not bool(matrix.values.isfinite().all()):
        bad = float(matrix.values[~matrix.values.isfinite()][0])
        raise ValueError(f"a value is {bad}, which int8 cannot hold; fix the weights, or compress to torch.float32")
    m, _ = matrix.shape
    device = matrix.values.device
    pointers = matrix.pointers.long()
    lengths = pointers.diff()
    rows = torch.repeat_interleave(torch.arange(m, device=device), lengths)
    gaps = matrix.columns.long()
    gaps[1:] = torch.where(rows[1:] == rows[:-1], gaps[1:] - gaps[:-1], gaps[1:])
    fillers = (gaps - 1).clamp(min=0) // LONGEST_STEP
    # An entry goes after all entries and fillers before it in its row, starting at the row's first quad.
    total = torch.cat([fillers.new_zeros(1), (fillers + 1).cumsum(0)])
    quads = (total[pointers[1:]] - total[pointers[:-1]] + 3) // 4
    starts = torch.cat([quads.new_zeros(1), quads.cumsum(0)])
    if int(starts[-1]) * 4 > LARGEST_INDEX:
        raise ValueError("the compact matrix has more entries than 32-bit indexing reaches; split it by rows")
    to = total[1:] - 1 - total[pointers[:-1]][rows] + 4 * starts[:-1][rows]
    distances = torch.zeros(int(starts[-1]) * 4, dtype=torch.uint8, device=device)
    distances[to] = (gaps - LONGEST_STEP * fillers).to(torch.uint8)
    last = torch.repeat_interleave(to - 1, fillers)
    run = torch.arange(last.numel(), device=device) - torch.repeat_interleave(fillers.cumsum(0) - fillers, fillers)
    distances[last - run] = LONGEST_STEP
    stored, scales = matrix.values, None
    if dtype == torch.int8:
        largest = torch.zeros(m, device=device).scatter_reduce(0, rows, stored.abs(), "amax")
        scales = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        stored = (stored / scales[rows]).round().clamp(-127, 127).to(torch.int8)
    values = torch.zeros(distances.numel(), dtype=dtype, device=device)
    values[to] = stored
    return Delta8(matrix.shape, matrix.nnz, starts.int(), distances, values, scales)


def prepare_spmv(
    matrix: CSR | Delta8, x: torch.Tensor, *, kernel: str = "spmv_warp_per_row", out: torch.Tensor | None = None
) -> Launch:
    """Prepare y = A x. x: (k,) float32; out: (m,) float32. A Delta8 matrix has one kernel for each value type."""
    _check_matrix(matrix, CSR, Delta8)
    m, k = matrix.shape
    check_tensor("x", x, torch.float32, (k,))
    device = check_same_device(matrix=matrix.values, x=x)
    y = output_like(out, (m,), torch.float32, device, matrix.values, x)
    if isinstance(matrix, Delta8):
        return _delta8(matrix, x, y)
    check_kernel(kernel, SPMV_KERNELS)
    rows = 128 if kernel == "spmv_thread_per_row" else 8
    block = (128 if kernel == "spmv_thread_per_row" else 256, 1, 1)
    arguments = (matrix.pointers, matrix.columns, matrix.values, x, y, m)
    return Launch("spmv_csr", kernel, (ceil_div(m, rows), 1, 1), block, arguments, y, checked=matrix.checked)


def spmv(matrix: CSR | Delta8, x: torch.Tensor, **options) -> torch.Tensor:
    """Compute y = A x with a sparse A; see `prepare_spmv` for the shapes and options."""
    return prepare_spmv(matrix, x, **options).run()


def _delta8(matrix: Delta8, x: torch.Tensor, y: torch.Tensor) -> Launch:
    m, k = matrix.shape
    shared = 4 * k <= shared_memory_limit(x.device)
    # One block per multiprocessor, so that x is copied there once; its 32 warps take rows in turn.
    blocks = min(ceil_div(m, 32), multiprocessors(x.device))
    arrays = (matrix.pointers, matrix.distances, matrix.values)
    scales = () if matrix.scales is None else (matrix.scales,)
    kernel = "spmv_delta8_fp32" if matrix.scales is None else "spmv_delta8_int8"
    arguments = (*arrays, *scales, x, y, m, k, int(shared))
    shared_bytes = 4 * k if shared else 0
    return Launch("spmv_csr", kernel, (blocks, 1, 1), (1024, 1, 1), arguments, y, shared_bytes, checked=matrix.checked)


def prepare_spmm(
    matrix: CSR, b: torch.Tensor, *, kernel: str = "spmm_row_split", out: torch.Tensor | None = None
) -> Launch:
    """Prepare C = A B. matrix: (m, k) CSR; b: (k, n) float32; out: (m, n) float32.

    spmm_row_split uses the variant whose lanes the n columns fill: 4, 8, 16 or 32 lanes of 4 columns.
    """
    _check_matrix(matrix, CSR)
    check_kernel(kernel, SPMM_KERNELS)
    m, k = matrix.shape
    check_tensor("b", b, torch.float32, (k, None))
    n = b.shape[1]
    check_not_empty("b", k, n)
    c = output_like(out, (m, n), torch.float32, check_same_device(matrix=matrix.values, b=b), matrix.values, b)
    arguments = (matrix.pointers, matrix.columns, matrix.values, b, c, m, n)
    if kernel == "spmm_thread_per_output":
        grid = (ceil_div(m, 8), ceil_div(n, 32), 1)
        return Launch("spmm_csr", kernel, grid, (32, 8, 1), arguments, c, checked=matrix.checked)
    lanes = next((lanes for lanes in (4, 8, 16) if n <= 4 * lanes), 32)
    grid = (ceil_div(m, 8), ceil_div(n, 4 * lanes), 1)
    return Launch("spmm_csr", f"{kernel}_{lanes}", grid, (256, 1, 1), arguments, c, checked=matrix.checked)


def spmm(matrix: CSR, b: torch.Tensor, **options) -> torch.Tensor:
    """Compute C = A B with a sparse A; see `prepare_spmm` for the shapes and options."""
    return prepare_spmm(matrix, b, **options).run()
