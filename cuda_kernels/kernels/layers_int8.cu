// The other layers of an integer network. Activations are (images, height, width, channels), one byte a value: the
// deployed model's byte minus 128. Channels are a multiple of 16, and a thread takes 4 of them.
#include "requantize.cuh"

constexpr int LAYER_THREADS = 128;

__device__ __forceinline__ int byte_of(int word, int j) { return (signed char)(word >> 8 * j); }

// Images in float32, (images, channels, height, width), become bytes. `padded` channels: those beyond the image's are 0.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    quantize_images(const float* __restrict__ x, signed char* __restrict__ out, float scale, int zero_point, int channels,
                    int pixels, int padded, int count) {
    int at = blockIdx.x * LAYER_THREADS + threadIdx.x, words = padded / 4, row = at / words, first = at % words * 4;
    if (at >= count) return;
    const float* source = x + (size_t)(row / pixels) * channels * pixels + row % pixels;
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (first + j >= channels) continue;
        float v = rintf(source[(size_t)(first + j) * pixels] / scale) + (float)zero_point;
        word |= (unsigned)(unsigned char)((int)bounded(v, 0, 255) - 128) << 8 * j;
    }
    ((int*)out)[at] = (int)word;
}

// The sum of two tensors that have each a step and a zero point of their own; see requantize.cuh.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    add_int8(const signed char* __restrict__ a, const signed char* __restrict__ b, signed char* __restrict__ out,
             float a_ratio, float b_ratio, float fixed, int low, int high, int count) {
    int at = blockIdx.x * LAYER_THREADS + threadIdx.x;
    if (at >= count) return;
    int av = ((const int*)a)[at], bv = ((const int*)b)[at];
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float v = added((float)(byte_of(av, j) + 128), a_ratio, (float)(byte_of(bv, j) + 128), b_ratio, fixed);
        word |= (unsigned)(unsigned char)((int)bounded(rintf(v), low, high) - 128) << 8 * j;
    }
    ((int*)out)[at] = (int)word;
}

// Any function of one value: a table of 256 bytes, by the input's byte in 0..255.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    table_int8(const signed char* __restrict__ x, const signed char* __restrict__ table, signed char* __restrict__ out,
               int count) {
    int at = blockIdx.x * LAYER_THREADS + threadIdx.x;
    if (at >= count) return;
    int v = ((const int*)x)[at];
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) word |= (unsigned)(unsigned char)table[byte_of(v, j) + 128] << 8 * j;
    ((int*)out)[at] = (int)word;
}

#define POOL_ARGUMENTS                                                                                              \
    int height, int width, int channels, int out_height, int out_width, int kernel_height, int kernel_width,        \
        int stride_y, int stride_x, int top, int left, int count
#define POOL_INDICES                                                                                                \
    int at = blockIdx.x * LAYER_THREADS + threadIdx.x, words = channels / 4, row = at / words;                      \
    int channel = at % words * 4, pixel = row % (out_height * out_width), image = row / (out_height * out_width);   \
    int y0 = pixel / out_width * stride_y - top, x0 = pixel % out_width * stride_x - left

// The largest value of each window, then the table from the input's bytes to the output's. Windows may reach over the
// edge; what lies there does not count.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    max_pool_int8(const signed char* __restrict__ x, const signed char* __restrict__ table, signed char* __restrict__ out,
                  POOL_ARGUMENTS) {
    POOL_INDICES;
    if (at >= count) return;
    int largest[4] = {-128, -128, -128, -128};
    for (int iy = max(y0, 0); iy < min(y0 + kernel_height, height); ++iy)
        for (int ix = max(x0, 0); ix < min(x0 + kernel_width, width); ++ix) {
            int v = *(const int*)(x + ((size_t)(image * height + iy) * width + ix) * channels + channel);
#pragma unroll
            for (int j = 0; j < 4; ++j) largest[j] = max(largest[j], byte_of(v, j));
        }
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) word |= (unsigned)(unsigned char)table[largest[j] + 128] << 8 * j;
    ((int*)out)[at] = (int)word;
}

// The mean of each window, which lies within the image: the exact sum less the zero points' (bias), scaled once.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    average_pool_int8(const signed char* __restrict__ x, signed char* __restrict__ out, float scale, int bias,
                      int zero_point, int low, int high, POOL_ARGUMENTS) {
    POOL_INDICES;
    if (at >= count) return;
    int sum[4] = {bias, bias, bias, bias};
    for (int iy = y0; iy < y0 + kernel_height; ++iy)
#pragma unroll 1
        for (int ix = x0; ix < x0 + kernel_width; ++ix) {
            int v = *(const int*)(x + ((size_t)(image * height + iy) * width + ix) * channels + channel);
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[j] += byte_of(v, j);
        }
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float v = bounded(rintf((float)sum[j] * scale) + (float)zero_point, low, high);
        word |= (unsigned)(unsigned char)((int)v - 128) << 8 * j;
    }
    ((int*)out)[at] = (int)word;
}

// For a layer whose zeros are left out, which is a sparse FP32 product: the matrix that im2col makes, transposed, as
// (kernel row, kernel column, channel) by pixels. A value is its byte less the zero point: a whole number, so the sums
// are exact as long as they stay below 2^24. Pixels outside of the image are 0.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    unfold_fp32(const signed char* __restrict__ x, float* __restrict__ out, int height, int width, int channels,
                int out_height, int out_width, int kernel_width, int stride_y, int stride_x, int top, int left,
                int dilation_y, int dilation_x, int zero_point, int used, int m) {
    int row = blockIdx.x * LAYER_THREADS + threadIdx.x, k = blockIdx.y;
    if (row >= m) return;
    int tap = k / used, pixel = row % (out_height * out_width), image = row / (out_height * out_width);
    int iy = pixel / out_width * stride_y - top + tap / kernel_width * dilation_y;
    int ix = pixel % out_width * stride_x - left + tap % kernel_width * dilation_x;
    bool inside = (unsigned)iy < (unsigned)height && (unsigned)ix < (unsigned)width;
    int v = inside ? x[((size_t)(image * height + iy) * width + ix) * channels + k % used] - zero_point : 0;
    out[(size_t)k * m + row] = (float)v;
}

// The epilogue of that product: sums (channels, pixels) in float32 become bytes (pixels, channels), 32 x 32 at a time
// through shared memory, so that both sides are read and written in neighbouring addresses.
extern "C" __global__ void __launch_bounds__(LAYER_THREADS)
    requantize_fp32(const float* __restrict__ sums, REQUANTIZE_ARGUMENTS, int m, int n, int padded) {
    __shared__ int tile[32][33];
    int row0 = blockIdx.x * 32, channel0 = blockIdx.y * 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < 32; i += LAYER_THREADS / 32) {
        bool inside = channel0 + i < n && row0 + lane < m;
        tile[i][lane] = inside ? (int)sums[(size_t)(channel0 + i) * m + row0 + lane] : 0;
    }
    __syncthreads();
    for (int i = threadIdx.x / 16; i < 32; i += LAYER_THREADS / 16) {
        int row = row0 + i, pair = threadIdx.x % 16 * 2, channel = channel0 + pair;
        if (row < m && channel < padded) write_pair(REQUANTIZE, row, channel, padded, tile[pair][i], tile[pair + 1][i]);
    }
}
