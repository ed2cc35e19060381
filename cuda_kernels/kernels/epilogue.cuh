// What follows the sums of gemm_int8 and gemm_int8_hopper.
#pragma once
#include "device.cuh"

// Outputs. mode 0: the int32 itself. 1: float = sum * scale[channel] + offset[channel]. 2: the same, rounded
// to even, plus zero_point, clamped to int8: the next layer's input. ReLU comes before the rounding.
struct Epilogue {
    void* out;
    const float* scale;
    const float* offset;
    int mode, relu, zero_point;
};

__device__ __forceinline__ void finish(const Epilogue& e, int row, int channel, int n, int sum) {
    size_t at = (size_t)row * n + channel;
    if (e.mode == 0) {
        ((int*)e.out)[at] = sum;
        return;
    }
    float v = fmaf((float)sum, e.scale[channel], e.offset[channel]);
    if (e.relu) v = fmaxf(v, 0.f);
    if (e.mode == 1)
        ((float*)e.out)[at] = v;
    else
        ((signed char*)e.out)[at] = (signed char)fminf(fmaxf(rintf(v) + (float)e.zero_point, -128.f), 127.f);
}

#define EPILOGUE_ARGUMENTS \
    void *__restrict__ out, const float *__restrict__ scale, const float *__restrict__ offset, int mode, int relu, \
        int zero_point
#define EPILOGUE \
    Epilogue { out, scale, offset, mode, relu, zero_point }
