// An integer convolution: x is (images, height, width, channels), one byte a value; w is (outputs, kernel height, kernel
// width, channels); out is (images, height, width, outputs). Channels and outputs are multiples of 16. A linear layer is
// a convolution of one pixel.
#include "int8_tiles.cuh"
#include "requantize.cuh"

// fill: four bytes of the input's zero point, which stand for pixels outside of the image.
struct Geometry {
    int height, width, channels, out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, top, left,
        dilation_y, dilation_x, fill;
};

#define GEOMETRY_ARGUMENTS                                                                                          \
    int height, int width, int channels, int out_height, int out_width, int kernel_height, int kernel_width,        \
        int stride_y, int stride_x, int top, int left, int dilation_y, int dilation_x, int fill
#define GEOMETRY                                                                                                    \
    Geometry {                                                                                                      \
        height, width, channels, out_height, out_width, kernel_height, kernel_width, stride_y, stride_x, top, left, \
            dilation_y, dilation_x, fill                                                                            \
    }

// Rows of the matrix that im2col would make, read from the image itself: row r is the window of output pixel r, its k
// are kernel row, kernel column and channel. 16 bytes of a row lie in one pixel, since channels are a multiple of 16.
// `stage` goes through k in order from `at`, and keeps its place in the window, so that it divides only once.
template <int ROWS, int THREADS>
struct Windows {
    static constexpr int MINE = (ROWS * PIECES + THREADS - 1) / THREADS;
    const signed char* x;
    Geometry g;
    int row0, rows, at = 0;
    int origin[MINE], y[MINE], left[MINE];
    int tap_y, tap_x, channel;
    bool placed = false;

    __device__ Windows(const signed char* x, const Geometry& g, int row0, int rows)
        : x(x), g(g), row0(row0), rows(rows) {}

    __device__ void place() {
        int k = at + threadIdx.x % PIECES * 16, tap = k / g.channels;
        channel = k % g.channels, tap_y = tap / g.kernel_width, tap_x = tap % g.kernel_width;
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            int row = row0 + (i * THREADS + threadIdx.x) / PIECES, pixel = row % (g.out_height * g.out_width);
            y[i] = pixel / g.out_width * g.stride_y - g.top;
            left[i] = pixel % g.out_width * g.stride_x - g.left;
            int image = row / (g.out_height * g.out_width);
            origin[i] = ((image * g.height + y[i]) * g.width + left[i]) * g.channels;
            if (row >= rows) y[i] = -(1 << 24);  // outside of every image
        }
        placed = true;
    }

    __device__ void stage(signed char* to) {
        if (!placed) place();
        int piece = threadIdx.x % PIECES, down = tap_y * g.dilation_y, right = tap_x * g.dilation_x;
        int offset = (down * g.width + right) * g.channels + channel;
#pragma unroll
        for (int i = 0; i < MINE; ++i) {
            int mine = i * THREADS + threadIdx.x;
            if (ROWS * PIECES % THREADS && mine >= ROWS * PIECES) break;
            bool inside = tap_y < g.kernel_height && (unsigned)(y[i] + down) < (unsigned)g.height &&
                          (unsigned)(left[i] + right) < (unsigned)g.width;
            signed char* target = to + swizzled(mine / PIECES, piece);
            if (inside)
                copy_async16(target, x + origin[i] + offset);
            else
                *(int4*)target = make_int4(g.fill, g.fill, g.fill, g.fill);
        }
        at += DEPTH;
        for (channel += DEPTH; channel >= g.channels; channel -= g.channels)
            if (++tap_x == g.kernel_width) tap_x = 0, ++tap_y;
    }
};

constexpr int CONV_THREADS = 128;

// Step 1: implicit matrix product on the tensor cores: (pixels, window) times (window, outputs).
template <int BM, int BN, int WM, int WN, int STAGES>
__device__ __forceinline__ void convolve(signed char* shared, const signed char* x, const signed char* w,
                                         const Requantize& epilogue, int* parts, int* tickets, const Geometry& g, int m,
                                         int n, int padded) {
    int k = g.kernel_height * g.kernel_width * g.channels;
    Windows<BM, CONV_THREADS> xs(x, g, blockIdx.y * BM, m);
    MatrixRows<BN, CONV_THREADS> ws{w, (int)blockIdx.x * BN, padded, k, 0};
    product<BM, BN, WM, WN, STAGES>(shared, xs, ws, k, parts, tickets, [&](int row, int col, int first, int second) {
        if (row < m && col < n) write_pair(epilogue, row, col, n, first, second);
    });
}

// m: output pixels; n: outputs of a pixel that are written; padded: rows of w.
#define CONV_ARGUMENTS                                                                                              \
    const signed char *__restrict__ x, const signed char *__restrict__ w, REQUANTIZE_ARGUMENTS, int *parts,         \
        int *tickets, GEOMETRY_ARGUMENTS, int m, int n, int padded
#define CONVOLVE(BM, BN, WM, WN, STAGES)                                                                             \
    TILE_MEMORY(BM, BN, STAGES);                                                                                    \
    convolve<BM, BN, WM, WN, STAGES>(shared, x, w, REQUANTIZE, parts, tickets, GEOMETRY, m, n, padded)

extern "C" __global__ void __launch_bounds__(CONV_THREADS) conv_int8_128x128(CONV_ARGUMENTS) {
    CONVOLVE(128, 128, 64, 64, 3);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS) conv_int8_128x32(CONV_ARGUMENTS) {
    CONVOLVE(128, 32, 32, 32, 4);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS) conv_int8_64x64(CONV_ARGUMENTS) {
    CONVOLVE(64, 64, 32, 32, 4);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS) conv_int8_64x16(CONV_ARGUMENTS) {
    CONVOLVE(64, 16, 16, 16, 4);
}

extern "C" __global__ void __launch_bounds__(CONV_THREADS) conv_int8_16x64(CONV_ARGUMENTS) {
    CONVOLVE(16, 64, 16, 16, 4);
}

// Depthwise: w is (kernel height, kernel width, channels). There is nothing to share between channels, and the time is
// that of the bytes. A thread takes 4 channels of a pixel; with three of its four bytes masked out, dp4a multiplies
// single bytes.
extern "C" __global__ void __launch_bounds__(CONV_THREADS)
    depthwise_int8(const signed char* __restrict__ x, const signed char* __restrict__ w, REQUANTIZE_ARGUMENTS,
                   GEOMETRY_ARGUMENTS, int m) {
    int words = channels / 4, at = blockIdx.x * CONV_THREADS + threadIdx.x, row = at / words, channel = at % words * 4;
    if (row >= m) return;
    int image = row / (out_height * out_width), pixel = row % (out_height * out_width);
    int y0 = pixel / out_width * stride_y - top, x0 = pixel % out_width * stride_x - left, sum[4] = {};
    for (int tap_y = 0; tap_y < kernel_height; ++tap_y)
        for (int tap_x = 0; tap_x < kernel_width; ++tap_x) {
            int iy = y0 + tap_y * dilation_y, ix = x0 + tap_x * dilation_x;
            bool inside = (unsigned)iy < (unsigned)height && (unsigned)ix < (unsigned)width;
            int xv = inside ? *(const int*)(x + ((size_t)(image * height + iy) * width + ix) * channels + channel) : fill;
            int wv = *(const int*)(w + (tap_y * kernel_width + tap_x) * channels + channel);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] = __dp4a(xv, (int)(wv & 0xffu << 8 * j), sum[j]);
        }
    write_quad(REQUANTIZE, (size_t)row * channels + channel, channel, sum);
}
