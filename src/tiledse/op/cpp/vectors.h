// Vectors of float32 for whatever processor this is compiled for, and the sums and products made of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace tiledse {

typedef int64_t Int;

#if defined(__AVX512F__)
#define TILEDSE_VECTOR_BYTES 64
#elif defined(__AVX__)
#define TILEDSE_VECTOR_BYTES 32
#else
#define TILEDSE_VECTOR_BYTES 16
#endif
// Of gcc and clang: arithmetic by element, at any address.
typedef float Vector __attribute__((vector_size(TILEDSE_VECTOR_BYTES), aligned(4), may_alias));

const Int kWide = TILEDSE_VECTOR_BYTES / 4;
const Int kLine = 16;  // numbers in a cache line

inline Vector load(const float *x) { return *reinterpret_cast<const Vector *>(x); }
inline void store(float *x, Vector v) { *reinterpret_cast<Vector *>(x) = v; }
inline Vector all(float x) { return x - Vector{}; }
typedef int32_t Lanes __attribute__((vector_size(TILEDSE_VECTOR_BYTES)));
inline Lanes lanes() {
  Lanes v;
  for (int i = 0; i < kWide; ++i) v[i] = i;
  return v;
}
// a in the first lanes, b in the others.
inline Vector joined(Vector a, Vector b, Int first) { return lanes() < int32_t(first) ? a : b; }
inline bool starts_line(const float *x) { return reinterpret_cast<uintptr_t>(x) % 64 == 0; }

// A store that goes past the cache, where there is one: else the line is read before it is written. x is aligned.
inline void stream(float *x, Vector v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(x, (__m512)v);
#elif defined(__AVX__)
  _mm256_stream_ps(x, (__m256)v);
#elif defined(__SSE__)
  _mm_stream_ps(x, (__m128)v);
#else
  store(x, v);
#endif
}
inline void fence() {
#if defined(__SSE__)
  _mm_sfence();
#endif
}

inline float total(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s[kWide];
  std::memcpy(s, &v, sizeof s);
  for (Int step = kWide / 2; step; step /= 2)
    for (Int i = 0; i < step; ++i) s[i] += s[i + step];
  return s[0];
#endif
}

// Sums in float32 of at most so many numbers to a lane; of those in float64. Long sums keep their digits.
const Int kPiece = 64 * 4 * kWide;

// Of x, or of x * y.
template <bool kTwo>
double sum(const float *x, const float *y, Int n) {
  double whole = 0;
  for (Int from = 0; from < n; from += kPiece) {
    const Int end = std::min(from + kPiece, n);
    Vector s0{}, s1{}, s2{}, s3{};
    Int i = from;
    for (; i + 4 * kWide <= end; i += 4 * kWide) {
      s0 += kTwo ? load(x + i) * load(y + i) : load(x + i);
      s1 += kTwo ? load(x + i + kWide) * load(y + i + kWide) : load(x + i + kWide);
      s2 += kTwo ? load(x + i + 2 * kWide) * load(y + i + 2 * kWide) : load(x + i + 2 * kWide);
      s3 += kTwo ? load(x + i + 3 * kWide) * load(y + i + 3 * kWide) : load(x + i + 3 * kWide);
    }
    for (; i + kWide <= end; i += kWide) s0 += kTwo ? load(x + i) * load(y + i) : load(x + i);
    float rest = total((s0 + s1) + (s2 + s3));
    for (; i < end; ++i) rest += kTwo ? x[i] * y[i] : x[i];
    whole += rest;
  }
  return whole;
}

// Products of kM rows of a at once, so that w is read once for all of them.
template <int kM>
void few_by_rows(const float *a, const float *w, const float *bias, float *out, Int rows, Int length) {
  const Int kR = 4;
  for (Int r0 = 0; r0 < rows; r0 += kR) {
    const float *y[kR];  // the last ones twice where fewer are left; not kept
    for (Int r = 0; r < kR; ++r) y[r] = w + std::min(r0 + r, rows - 1) * length;
    Vector s[kM][kR] = {};
    Int c = 0;
    for (; c + kWide <= length; c += kWide)
      for (Int m = 0; m < kM; ++m)
        for (Int r = 0; r < kR; ++r) s[m][r] += load(a + m * length + c) * load(y[r] + c);
    for (Int m = 0; m < kM; ++m)
      for (Int r = 0; r < kR && r0 + r < rows; ++r) {
        float v = total(s[m][r]);
        for (Int k = c; k < length; ++k) v += a[m * length + k] * y[r][k];
        out[m * rows + r0 + r] = v + (bias ? bias[r0 + r] : 0.0f);
      }
  }
}

template <int kM>
void few_by_columns(const float *a, const float *w, const float *bias, float *out, Int rows, Int length) {
  const Int kV = kM == 1 ? 8 : 4;
  Int c = 0;
  for (; c + kV * kWide <= length; c += kV * kWide) {
    Vector s[kM][kV];
    for (Int m = 0; m < kM; ++m)
      for (Int v = 0; v < kV; ++v) s[m][v] = bias ? load(bias + c + v * kWide) : Vector{};
    for (Int r = 0; r < rows; ++r)
      for (Int m = 0; m < kM; ++m)
        for (Int v = 0; v < kV; ++v) s[m][v] += all(a[m * rows + r]) * load(w + r * length + c + v * kWide);
    for (Int m = 0; m < kM; ++m)
      for (Int v = 0; v < kV; ++v) store(out + m * length + c + v * kWide, s[m][v]);
  }
  for (Int m = 0; m < kM; ++m) {
    float *left = out + m * length;
    for (Int k = c; k < length; ++k) left[k] = bias ? bias[k] : 0.0f;
    for (Int r = 0; r < rows; ++r)
      for (Int k = c; k < length; ++k) left[k] += a[m * rows + r] * w[r * length + k];
  }
}

// out[m][r] = bias[r] + the sum over c of a[m][c] * w[r][c].
inline void rows_by_rows(const float *a, const float *w, const float *bias, float *out, Int many, Int rows, Int length) {
  Int m = 0;
  for (; m + 4 <= many; m += 4) few_by_rows<4>(a + m * length, w, bias, out + m * rows, rows, length);
  for (; m < many; ++m) few_by_rows<1>(a + m * length, w, bias, out + m * rows, rows, length);
}

// out[m][c] = bias[c] + the sum over r of a[m][r] * w[r][c].
inline void rows_by_columns(const float *a, const float *w, const float *bias, float *out, Int many, Int rows,
                            Int length) {
  Int m = 0;
  for (; m + 4 <= many; m += 4) few_by_columns<4>(a + m * rows, w, bias, out + m * length, rows, length);
  for (; m < many; ++m) few_by_columns<1>(a + m * rows, w, bias, out + m * length, rows, length);
}

// (rows, cols) to (cols, rows).
inline void transpose(const float *x, float *out, Int rows, Int cols) {
  const Int kBlock = 8;
  for (Int r0 = 0; r0 < rows; r0 += kBlock)
    for (Int c0 = 0; c0 < cols; c0 += kBlock)
      for (Int c = c0; c < std::min(c0 + kBlock, cols); ++c)
        for (Int r = r0; r < std::min(r0 + kBlock, rows); ++r) out[c * rows + r] = x[r * cols + c];
}

}  // namespace tiledse
