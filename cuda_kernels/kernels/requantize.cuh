// What follows the sums of an integer layer, in the arithmetic of the deployed model (ONNX Runtime's integer operators):
// the sum and its bias are exact, one float32 product scales them, and the result is rounded to even.
#pragma once
#include "device.cuh"

// Activations are the deployed model's bytes 0..255 minus 128; bounds and zero points here are in 0..255. The bias also
// holds the input's zero point times the sum of the channel's weights. low and high: the range of a byte, or of what an
// activation such as ReLU leaves of it. With a residual, the rounded output is added to it, scaled by each one's step
// over the sum's, and rounded again: fixed is the sum's zero point less both scaled zero points. order: whether the
// layer's output is the first operand of the addition. floats: the output is float32 in real units instead, for logits.
struct Requantize {
    void* out;
    const int* bias;
    const float* scale;
    const signed char* residual;
    float ratio, residual_ratio, fixed;
    int zero_point, low, high, sum_low, sum_high, order, floats;
};

#define REQUANTIZE_ARGUMENTS                                                                                        \
    void *__restrict__ out, const int *__restrict__ bias, const float *__restrict__ scale,                          \
        const signed char *__restrict__ residual, float ratio, float residual_ratio, float fixed, int zero_point,   \
        int low, int high, int sum_low, int sum_high, int order, int floats
#define REQUANTIZE                                                                                                  \
    Requantize {                                                                                                    \
        out, bias, scale, residual, ratio, residual_ratio, fixed, zero_point, low, high, sum_low, sum_high, order,  \
            floats                                                                                                  \
    }

__device__ __forceinline__ float bounded(float v, int low, int high) { return fminf(fmaxf(v, (float)low), (float)high); }

// a * x + (b * y + c): the order of the operands decides the last bit, and so which way a tie is rounded.
__device__ __forceinline__ float added(float x, float a, float y, float b, float c) { return fmaf(x, a, fmaf(y, b, c)); }

// The output byte of a channel, given its sum and, if there is a residual, the residual's byte.
__device__ __forceinline__ signed char rounded(const Requantize& e, int channel, int sum, signed char residual) {
    float v = (float)(sum + e.bias[channel]) * e.scale[channel];
    v = bounded(rintf(v) + (float)e.zero_point, e.low, e.high);
    if (e.residual) {
        float r = (float)(residual + 128);
        v = e.order ? added(v, e.ratio, r, e.residual_ratio, e.fixed) : added(r, e.residual_ratio, v, e.ratio, e.fixed);
        v = bounded(rintf(v), e.sum_low, e.sum_high);
    }
    return (signed char)((int)v - 128);
}

// Writes two neighbouring outputs of a row of n.
__device__ __forceinline__ void write_pair(const Requantize& e, int row, int channel, int n, int first, int second) {
    size_t at = (size_t)row * n + channel;
    if (e.floats) {
        ((float*)e.out)[at] = (float)(first + e.bias[channel]) * e.scale[channel];
        if (channel + 1 < n) ((float*)e.out)[at + 1] = (float)(second + e.bias[channel + 1]) * e.scale[channel + 1];
        return;
    }
    short r = e.residual ? *(const short*)(e.residual + at) : (short)0;
    unsigned low = (unsigned char)rounded(e, channel, first, (signed char)r);
    unsigned high = (unsigned char)rounded(e, channel + 1, second, (signed char)(r >> 8));
    *(short*)((signed char*)e.out + at) = (short)(low | high << 8);
}

// Writes four neighbouring outputs of a row; n is a multiple of 4.
__device__ __forceinline__ void write_quad(const Requantize& e, size_t at, int channel, const int (&sum)[4]) {
    int r = e.residual ? *(const int*)(e.residual + at) : 0;
    unsigned word = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j)
        word |= (unsigned)(unsigned char)rounded(e, channel + j, sum[j], (signed char)(r >> 8 * j)) << 8 * j;
    *(int*)((signed char*)e.out + at) = (int)word;
}
