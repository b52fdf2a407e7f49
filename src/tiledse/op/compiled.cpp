// The operator on row strips of float32 maps on a CPU, forward and backward, strip by strip: a strip that has just been
// summed is still in the cache when it is scaled. What op/fused_kernels.py is for a GPU.
//
// NCHW and channels_last ("last"). Sums over pieces of a strip are float32, sums of those float64: long sums keep digits.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

typedef int64_t Int;

// Stores that go past the cache. An output larger than the cache is written so: else each of its lines is read first.
#if defined(__AVX512F__)
typedef __m512 Vector;
inline Vector load(const float *x) { return _mm512_loadu_ps(x); }
inline Vector all(float x) { return _mm512_set1_ps(x); }
inline void stream(float *x, Vector v) { _mm512_stream_ps(x, v); }
inline void fence() { _mm_sfence(); }
#elif defined(__AVX__)
typedef __m256 Vector;
inline Vector load(const float *x) { return _mm256_loadu_ps(x); }
inline Vector all(float x) { return _mm256_set1_ps(x); }
inline void stream(float *x, Vector v) { _mm256_stream_ps(x, v); }
inline void fence() { _mm_sfence(); }
#else
struct Vector {
  float v;
  Vector operator*(Vector o) const { return {v * o.v}; }
  Vector operator+(Vector o) const { return {v + o.v}; }
};
inline Vector load(const float *x) { return {*x}; }
inline Vector all(float x) { return {x}; }
inline void stream(float *x, Vector v) { *x = v.v; }
inline void fence() {}
#endif
const Int kWide = sizeof(Vector) / sizeof(float);
inline bool aligned(const float *x) { return reinterpret_cast<uintptr_t>(x) % sizeof(Vector) == 0; }

struct Job {
  Int images, channels, height, width, tall, reduced, act, gate, last, past_cache, threads;
  Int rows() const { return (height + tall - 1) / tall; }
};

// Strips are dealt out in equal runs, one for each thread.
template <class Work>
void shared(const Job &job, Work work) {
  const Int strips = job.images * job.rows(), threads = std::max<Int>(1, std::min(job.threads, strips));
  std::vector<std::thread> others;
  for (Int t = 1; t < threads; ++t) others.emplace_back(work, strips * t / threads, strips * (t + 1) / threads);
  work(0, strips / threads);
  for (std::thread &other : others) other.join();
}

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
  int32_t bits;
  std::memcpy(&bits, &k, 4);
  bits = (bits + 127) << 23;  // the low bits of k hold n
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

inline float sigmoid(float a) { return 1.0f / (1.0f + exponential(-a)); }
inline float clamped(float a) { return a <= -3 ? 0.0f : a >= 3 ? 1.0f : a / 6 + 0.5f; }

enum { kRelu, kSilu, kHardswish };  // act; gate: 0 sigmoid, 1 hardsigmoid

void activate(Int act, const float *a, float *h, Int n) {
#pragma omp simd
  for (Int i = 0; i < n; ++i)
    h[i] = act == kRelu ? (a[i] <= 0 ? 0.0f : a[i]) : act == kSilu ? a[i] * sigmoid(a[i]) : a[i] * clamped(a[i]);
}

inline float act_slope(Int act, float a) {
  if (act == kRelu) return a > 0 ? 1.0f : 0.0f;
  if (act == kHardswish) return a <= -3 ? 0.0f : a >= 3 ? 1.0f : a / 3 + 0.5f;
  const float s = sigmoid(a);
  return s * (1 + a * (1 - s));
}

float sum(const float *x, Int n) {
  float s = 0;
#pragma omp simd reduction(+ : s)
  for (Int i = 0; i < n; ++i) s += x[i];
  return s;
}

float dot(const float *x, const float *y, Int n) {
  float s = 0;
#pragma omp simd reduction(+ : s)
  for (Int i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

void add_times(float *y, const float *x, float a, Int n) {
#pragma omp simd
  for (Int i = 0; i < n; ++i) y[i] += a * x[i];
}

const Int kPiece = 512;  // numbers, or pixels, that are summed in float32

// A strip of an image, and sums over it by channel: of x, or of x * y.
struct Strip {
  const Job &job;
  Int first, pixels;  // of the strip, in a channel's plane or in the image's pixels
  Int image;          // where the image starts
  Strip(const Job &j, Int strip) : job(j) {
    const Int row = strip % j.rows(), top = row * j.tall;
    first = top * j.width;
    pixels = (std::min(top + j.tall, j.height) - top) * j.width;
    image = strip / j.rows() * j.channels * j.height * j.width;
  }
  Int start(Int c) const { return image + c * job.height * job.width + first; }  // NCHW
  Int start() const { return image + first * job.channels; }                     // channels_last

  template <bool kTwo>
  void sums(const float *x, const float *y, float *out, std::vector<double> &total, std::vector<float> &part) const {
    const Int channels = job.channels;
    if (!job.last) {
      for (Int c = 0; c < channels; ++c) {
        double s = 0;
        for (Int i = 0; i < pixels; i += kPiece) {
          const Int n = std::min(kPiece, pixels - i), at = start(c) + i;
          s += kTwo ? dot(x + at, y + at, n) : sum(x + at, n);
        }
        out[c] = s;
      }
      return;
    }
    std::fill(total.begin(), total.end(), 0.0);
    for (Int i0 = 0; i0 < pixels; i0 += kPiece) {
      std::fill(part.begin(), part.end(), 0.0f);
      float *p = part.data();
      const Int i1 = std::min(i0 + kPiece, pixels);
      Int i = i0;
      for (; i + 4 <= i1; i += 4) {  // four pixels for each time that the sums are read and written
        const float *a = x + start() + i * channels, *b = kTwo ? y + start() + i * channels : nullptr;
#pragma omp simd
        for (Int c = 0; c < channels; ++c)
          p[c] += kTwo ? (a[c] * b[c] + a[c + channels] * b[c + channels]) +
                             (a[c + 2 * channels] * b[c + 2 * channels] + a[c + 3 * channels] * b[c + 3 * channels])
                       : (a[c] + a[c + channels]) + (a[c + 2 * channels] + a[c + 3 * channels]);
      }
      for (; i < i1; ++i) {
        const float *a = x + start() + i * channels, *b = kTwo ? y + start() + i * channels : nullptr;
#pragma omp simd
        for (Int c = 0; c < channels; ++c) p[c] += kTwo ? a[c] * b[c] : a[c];
      }
      for (Int c = 0; c < channels; ++c) total[c] += p[c];
    }
    for (Int c = 0; c < channels; ++c) out[c] = total[c];
  }

  // out = x * gate, plus share where there is one
  template <bool kAdd>
  void scale(const float *x, const float *gate, const float *share, float *out) const {
    if (!job.last) {
      for (Int c = 0; c < job.channels; ++c) {
        const float *a = x + start(c), g = gate[c], s = kAdd ? share[c] : 0.0f;
        float *b = out + start(c);
        Int i = 0;
        if (job.past_cache && pixels >= 128) {  // shorter runs have too many ends that share a line with the next
          for (; !aligned(b + i); ++i) b[i] = a[i] * g + s;
          for (; i + kWide <= pixels; i += kWide) stream(b + i, load(a + i) * all(g) + all(s));
        }
#pragma omp simd
        for (Int k = i; k < pixels; ++k) b[k] = kAdd ? a[k] * g + s : a[k] * g;
      }
      return;
    }
    const bool past_cache = job.past_cache && job.channels % kWide == 0 && aligned(out);
    for (Int i = 0; i < pixels; ++i) {
      const float *a = x + start() + i * job.channels;
      float *b = out + start() + i * job.channels;
      if (past_cache) {
        for (Int c = 0; c < job.channels; c += kWide) {
          const Vector v = load(a + c) * load(gate + c);
          stream(b + c, kAdd ? v + load(share + c) : v);
        }
        continue;
      }
#pragma omp simd
      for (Int c = 0; c < job.channels; ++c) b[c] = kAdd ? a[c] * gate[c] + share[c] : a[c] * gate[c];
    }
  }
};

}  // namespace

extern "C" {

// y = x by its gates. w1: R x C, w2: C x R. Unless null, descriptors, hidden (before its activation) and gates are kept:
// strips x C, R and C.
void tiledse_forward(const float *x, float *y, const float *w1, const float *b1, const float *w2, const float *b2,
                     float *descriptors, float *hidden, float *gates, const Int *numbers) {
  Job job;
  std::memcpy(&job, numbers, sizeof job);
  shared(job, [=](Int from, Int to) {
    const Int channels = job.channels, reduced = job.reduced;
    std::vector<float> z(channels), g(channels), part(channels), a(reduced), h(reduced);
    std::vector<double> total(channels);
    for (Int s = from; s < to; ++s) {
      const Strip strip(job, s);
      strip.sums<false>(x, nullptr, z.data(), total, part);
      for (Int c = 0; c < channels; ++c) z[c] /= strip.pixels;
      for (Int r = 0; r < reduced; ++r) a[r] = b1[r] + dot(w1 + r * channels, z.data(), channels);
      activate(job.act, a.data(), h.data(), reduced);
      for (Int c = 0; c < channels; ++c) g[c] = b2[c] + dot(w2 + c * reduced, h.data(), reduced);
      if (job.gate == 0) {
#pragma omp simd
        for (Int c = 0; c < channels; ++c) g[c] = sigmoid(g[c]);
      } else {
#pragma omp simd
        for (Int c = 0; c < channels; ++c) g[c] = clamped(g[c]);
      }
      if (descriptors) {
        std::copy(z.begin(), z.end(), descriptors + s * channels);
        std::copy(a.begin(), a.end(), hidden + s * reduced);
        std::copy(g.begin(), g.end(), gates + s * channels);
      }
      strip.scale<false>(x, g.data(), nullptr, y);
    }
    fence();
  });
}

// dx, and the gradients of both layers' sums: strips x R and strips x C.
void tiledse_backward(const float *x, const float *grad, float *dx, const float *w1, const float *w2,
                      const float *hidden, const float *gates, float *to_a1, float *to_a2, const Int *numbers) {
  Job job;
  std::memcpy(&job, numbers, sizeof job);
  shared(job, [=](Int from, Int to) {
    const Int channels = job.channels, reduced = job.reduced;
    std::vector<float> share(channels), part(channels);
    std::vector<double> total(channels);
    for (Int s = from; s < to; ++s) {
      const Strip strip(job, s);
      const float *g = gates + s * channels, *a = hidden + s * reduced;
      float *d1 = to_a1 + s * reduced, *d2 = to_a2 + s * channels;
      strip.sums<true>(grad, x, d2, total, part);
      for (Int c = 0; c < channels; ++c)
        d2[c] *= job.gate == 0 ? g[c] * (1 - g[c]) : (g[c] > 0 && g[c] < 1 ? 1.0f / 6 : 0.0f);
      std::fill(d1, d1 + reduced, 0.0f);
      for (Int c = 0; c < channels; ++c) add_times(d1, w2 + c * reduced, d2[c], reduced);
      for (Int r = 0; r < reduced; ++r) d1[r] *= act_slope(job.act, a[r]);
      std::fill(share.begin(), share.end(), 0.0f);
      for (Int r = 0; r < reduced; ++r) add_times(share.data(), w1 + r * channels, d1[r], channels);
      for (Int c = 0; c < channels; ++c) share[c] /= strip.pixels;
      strip.scale<true>(grad, g, share.data(), dx);
    }
    fence();
  });
}
}
