// Activations and gate functions, with their slopes.

#pragma once

#include "vectors.h"

namespace tiledse {

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
  p = p * r + 1.38888889e-3f;
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &k, 4);
  bits = (bits + 127) << 23;  // the low bits of k hold n
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float a) { return 1.0f / (1.0f + exponential(-a)); }
inline float clamped(float a) { return a <= -3 ? 0.0f : a >= 3 ? 1.0f : a / 6 + 0.5f; }

inline void activate(Int act, const float *a, float *h, Int n) {
#pragma omp simd
  for (Int i = 0; i < n; ++i)
    h[i] = act == kRelu ? (a[i] <= 0 ? 0.0f : a[i]) : act == kSilu ? a[i] * sigmoid(a[i]) : a[i] * clamped(a[i]);
}

inline void open_gates(Int gate, float *g, Int n) {
  if (gate == kSigmoid) {
#pragma omp simd
    for (Int i = 0; i < n; ++i) g[i] = sigmoid(g[i]);
  } else {
#pragma omp simd
    for (Int i = 0; i < n; ++i) g[i] = clamped(g[i]);
  }
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
