// Vectors of float32 for whatever processor this is compiled for; maps of float32, bfloat16 or float16 in and out of
// them; sums, products, activations and gate functions.

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
typedef int32_t Lanes __attribute__((vector_size(TILEDSE_VECTOR_BYTES)));
typedef uint32_t Bits __attribute__((vector_size(TILEDSE_VECTOR_BYTES)));
typedef uint16_t Halves __attribute__((vector_size(TILEDSE_VECTOR_BYTES / 2), aligned(2), may_alias));

const Int kWide = TILEDSE_VECTOR_BYTES / 4;
const Int kPad = 32;  // numbers that vectors may reach past an end: the longest line
template <class T>
constexpr Int line() {  // numbers in a cache line
  return 64 / sizeof(T);
}

inline Vector all(float x) { return x - Vector{}; }
inline Lanes lanes() {
  Lanes v;
  for (int i = 0; i < kWide; ++i) v[i] = i;
  return v;
}
// a in the first lanes, b in the others.
inline Vector joined(Vector a, Vector b, Int first) { return lanes() < int32_t(first) ? a : b; }
template <class T>
bool starts_line(const T *x) {
  return reinterpret_cast<uintptr_t>(x) % 64 == 0;
}

// A map's numbers: one (number, put), a vector of them (load, store), and a store that goes past the cache, where there
// is one, to an aligned place (stream): else the line is read before it is written.
inline float number(const float *x) { return *x; }
inline void put(float *x, float v) { *x = v; }
inline Vector load(const float *x) { return *reinterpret_cast<const Vector *>(x); }
inline void store(float *x, Vector v) { *reinterpret_cast<Vector *>(x) = v; }
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

inline void stream_halves(void *x, Halves v) {
#if defined(__AVX512F__)
  _mm256_stream_si256(static_cast<__m256i *>(x), (__m256i)v);
#elif defined(__AVX__)
  _mm_stream_si128(static_cast<__m128i *>(x), (__m128i)v);
#else
  *static_cast<Halves *>(x) = v;
#endif
}

struct BFloat16 {
  uint16_t bits;
};
inline Vector load(const BFloat16 *x) {
  return (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves *>(x), Bits) << 16);
}
inline Halves narrow(Vector v, const BFloat16 *) {  // to the nearest, ties to even; a NaN stays one
  const Bits b = (Bits)v, rounded = (b + (0x7fff + ((b >> 16) & 1))) >> 16;
  return __builtin_convertvector((Bits)(v == v ? (Lanes)rounded : Lanes{} + 0x7fc0), Halves);
}
inline float number(const BFloat16 *x) {
  const uint32_t bits = uint32_t(x->bits) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline void put(BFloat16 *x, float v) {
  uint32_t b;
  std::memcpy(&b, &v, 4);
  x->bits = v == v ? (b + 0x7fff + ((b >> 16) & 1)) >> 16 : 0x7fc0;
}

#if defined(__F16C__)
#define TILEDSE_FLOAT16 1
struct Float16 {
  uint16_t bits;
};
inline float number(const Float16 *x) { return _cvtsh_ss(x->bits); }
inline void put(Float16 *x, float v) { x->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT); }
#if defined(__AVX512F__)
inline Vector load(const Float16 *x) { return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x)); }
inline Halves narrow(Vector v, const Float16 *) {
  return (Halves)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
#else
inline Vector load(const Float16 *x) { return (Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)); }
inline Halves narrow(Vector v, const Float16 *) {
  return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}
#endif
#endif

template <class T>
void store(T *x, Vector v) {
  *reinterpret_cast<Halves *>(x) = narrow(v, x);
}
template <class T>
void stream(T *x, Vector v) {
  stream_halves(x, narrow(v, x));
}

inline float total(Vector v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
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

// Of x, or of x * y; reach: a vector may be read of fewer numbers than it has.
template <bool kTwo, class T>
inline double sum(const T *x, const T *y, Int n, bool reach) {
  if ((n >= kWide || reach) && n < 4 * kWide) {  // a row of a small map
    const auto at = [&](Int k) { return kTwo ? load(x + k) * load(y + k) : load(x + k); };
    if (n < kWide) return total(joined(at(0), Vector{}, n));
    Vector s = at(0);
    Int i = kWide;
    for (; i + kWide <= n; i += kWide) s += at(i);
    return total(i < n ? s + joined(Vector{}, at(n - kWide), kWide - (n - i)) : s);
  }
  double whole = 0;
  for (Int from = 0; from < n; from += kPiece) {
    const Int end = std::min(from + kPiece, n);
    Vector s0{}, s1{}, s2{}, s3{};
    Int i = from;
    const auto at = [&](Int k) { return kTwo ? load(x + k) * load(y + k) : load(x + k); };
    for (; i + 4 * kWide <= end; i += 4 * kWide)
      s0 += at(i), s1 += at(i + kWide), s2 += at(i + 2 * kWide), s3 += at(i + 3 * kWide);
    for (; i + kWide <= end; i += kWide) s0 += at(i);
    if (i < end && end >= kWide) {  // the last numbers, by a vector that reaches back over some that are summed
      s1 += joined(Vector{}, at(end - kWide), kWide - (end - i));
      i = end;
    }
    float rest = total((s0 + s1) + (s2 + s3));
    for (; i < end; ++i) rest += kTwo ? number(x + i) * number(y + i) : number(x + i);
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

enum { kRelu, kSilu, kHardswish };  // act
enum { kSigmoid, kHardsigmoid };    // gate

// e^x to 2 units in the last place, in a form that compilers turn into vector code; a NaN stays one.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float k = x * 1.44269504f + 12582912.0f;  // rounds to the nearest whole number
  const float n = k - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.98412698e-4f;
  p = p * r + 1.38888889e-3f, p = p * r + 8.33333333e-3f, p = p * r + 4.16666667e-2f, p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f, p = p * r + 1.0f, p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &k, 4);
  bits = (bits + 127) << 23;  // the low bits of k hold n
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float a) { return 1.0f / (1.0f + exponential(-a)); }
inline float clamped(float a) { return a <= -3 ? 0.0f : a >= 3 ? 1.0f : a / 6 + 0.5f; }

// One loop for each function: with a choice within, compilers make vector code in some callers and not in others.
template <class Function>
void each(const float *a, float *out, Int n, Function function) {
#pragma omp simd
  for (Int i = 0; i < n; ++i) out[i] = function(a[i]);
}

inline void activate(Int act, const float *a, float *h, Int n) {
  if (act == kRelu)
    each(a, h, n, [](float v) { return v <= 0 ? 0.0f : v; });
  else if (act == kSilu)
    each(a, h, n, [](float v) { return v * sigmoid(v); });
  else
    each(a, h, n, [](float v) { return v * clamped(v); });
}

inline void open_gates(Int gate, float *g, Int n) {
  if (gate == kSigmoid)
    each(g, g, n, [](float v) { return sigmoid(v); });
  else
    each(g, g, n, [](float v) { return clamped(v); });
}

// Where the argument is a.
inline float act_slope(Int act, float a) {
  if (act == kRelu) return a > 0 ? 1.0f : 0.0f;
  if (act == kHardswish) return a <= -3 ? 0.0f : a >= 3 ? 1.0f : a / 3 + 0.5f;
  const float s = sigmoid(a);
  return s * (1 + a * (1 - s));
}

// Where the value is g.
inline float gate_slope(Int gate, float g) {
  return gate == kSigmoid ? g * (1 - g) : (g > 0 && g < 1 ? 1.0f / 6 : 0.0f);
}

}  // namespace tiledse
