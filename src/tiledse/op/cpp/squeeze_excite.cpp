// The operator on maps on a CPU, forward and backward, unit by unit: what has just been summed is still in the cache
// when it is scaled, and the next unit is on its way from memory. What op/triton_kernels.py is for a GPU.
//
// A library with functions of C, which op/by_cpp.py calls: it knows neither Python nor torch.

#include <exception>

#include "writing.h"

namespace tiledse {

// torch_parallel_for: torch's own threads. Others would wait for a processor while torch's still look for work.
typedef int32_t (*Parallel)(Int begin, Int end, Int grain, void (*work)(Int begin, Int end, void *data), void *data);
Parallel parallel = nullptr;

// ``work`` (from, to) in equal runs of 0 to number, one for each thread.
template <class Work>
void shared(Int number, Int threads, const Work &work) {
  struct Runs {
    const Work &work;
    Int number, parts;
    void take(Int k) const { work(number * k / parts, number * (k + 1) / parts); }
  };
  const Runs runs{work, number, std::max<Int>(1, std::min(threads, number))};
  if (runs.parts == 1 || !parallel) {
    work(0, number);
    return;
  }
  const auto some = [](Int begin, Int end, void *data) {
    for (Int k = begin; k < end; ++k) static_cast<const Runs *>(data)->take(k);
  };
  if (parallel(0, runs.parts, 1, some, const_cast<Runs *>(&runs))) throw std::exception();
}

template <bool kTwo, class T>
void sum_unit(const Job &job, const Unit &unit, Sums<kTwo, T> &sums, const T *x, const T *y, double *out) {
  const Int of_band = job.cols() * job.channels;
  const bool part = job.part() && !kTwo;
  for (Int n = 0; n < unit.images; ++n) {
    const Int at = (unit.image + n) * job.image();
    const T *a = x + at, *b = kTwo ? y + at : nullptr;
    double *of_image = out + n * unit.bands * of_band;
    const auto from = [&](Int band) { return part ? job.first : job.top(band); };
    const auto stop = [&](Int band) { return part ? job.stop : job.top(band) + job.rows(band); };
    if (job.last) {
      for (Int k = 0; k < unit.bands; ++k)
        sums.pixels(a, b, from(unit.band + k), stop(unit.band + k), of_image + k * of_band);
    } else {
      for (Int c = 0; c < job.channels; ++c)
        for (Int k = 0; k < unit.bands; ++k)
          sums.planes(a, b, c, from(unit.band + k), stop(unit.band + k), of_image + k * of_band + c, job.channels);
    }
  }
}

// Elements of a channel that the gate of a sliding band sees; bounds: its first grain, and the one after the last.
inline Int seen(const Job &job, const Int *bounds, Int band) {
  const Int *of = bounds + 2 * band;
  return (std::min(of[1] * job.grain, job.height) - of[0] * job.grain) * job.width;
}

struct Layers {
  const float *w1, *b1, *w2, *b2;  // w1: R x C, w2: C x R
};
struct Kept {
  float *descriptors, *hidden, *gates;  // tiles x C, R (before its activation) and C; or null
};

// Descriptors to gates.
class Excitation {
 public:
  // Turned, the second layer is summed by vectors of channels; for few tiles turning takes longer than it saves.
  Excitation(const Job &job, const Layers &w, const Kept &kept)
      : job_(job), w_(w), kept_(kept), turned_(job.tiles() > job.reduced / 3 ? job.channels * job.reduced : 0) {
    if (!turned_.empty()) transpose(w.w2, turned_.data(), job.channels, job.reduced);
  }
  // z, g: tiles x C, of the tiles from the first on; hidden: room for 2 x tiles x R.
  void gates(const float *z, float *hidden, float *g, Int first, Int tiles) const {
    const Int channels = job_.channels, reduced = job_.reduced;
    float *const a = hidden, *const h = hidden + tiles * reduced;
    rows_by_rows(z, w_.w1, w_.b1, a, tiles, reduced, channels);
    activate(job_.act, a, h, tiles * reduced);
    if (turned_.empty())
      rows_by_rows(h, w_.w2, w_.b2, g, tiles, channels, reduced);
    else
      rows_by_columns(h, turned_.data(), w_.b2, g, tiles, reduced, channels);
    open_gates(job_.gate, g, tiles * channels);
    if (!kept_.gates) return;
    std::copy(z, z + tiles * channels, kept_.descriptors + first * channels);
    std::copy(a, h, kept_.hidden + first * reduced);
    std::copy(g, g + tiles * channels, kept_.gates + first * channels);
  }

 private:
  const Job &job_;
  const Layers w_;
  const Kept kept_;
  std::vector<float> turned_;
};

// The same as ``forward`` for fewer images in NCHW than threads, which share the channels: each is one run of memory.
template <class T>
void forward_by_channels(const Job &job, const T *x, T *y, const Excitation &excitation) {
  const Int channels = job.channels, reduced = job.reduced, cols = job.cols(), of_image = job.bands() * cols;
  std::vector<float> z(job.tiles() * channels), g(z.size());
  const auto by_channels = [&](auto work) {
    shared(channels, job.threads, [&](Int from, Int to) {
      Job some = job;
      some.images = 1, some.channels = to - from;
      for (Int n = 0; n < job.images; ++n)
        work(some, n * job.image() + from * job.height * job.width, n * of_image * channels + from);
    });
  };
  const Unit whole{0, 1, 0, job.bands()};
  by_channels([&](const Job &some, Int at, Int first) {
    std::vector<double> sums(of_image * some.channels);
    Sums<false, T> adder(some, x + at);
    sum_unit<false>(some, whole, adder, x + at, static_cast<const T *>(nullptr), sums.data());
    for (Int t = 0; t < of_image; ++t)
      for (Int c = 0; c < some.channels; ++c)
        z[first + t * channels + c] = sums[t * some.channels + c] / job.squeezed(t / cols, t % cols);
  });
  shared(job.tiles(), job.threads, [&](Int from, Int to) {
    std::vector<float> hidden(2 * (to - from) * reduced);
    excitation.gates(z.data() + from * channels, hidden.data(), g.data() + from * channels, from, to - from);
  });
  by_channels([&](const Job &some, Int at, Int first) {
    std::vector<float> gates(of_image * some.channels);
    for (Int t = 0; t < of_image; ++t)
      std::copy_n(g.data() + first + t * channels, some.channels, gates.data() + t * some.channels);
    Scaling<false, T>(some, x + at, y + at).unit(whole, gates.data(), nullptr);
    fence();
  });
}

// y = x by its gates.
template <class T>
void forward(const Job &job, const T *x, T *y, const Layers &w, const Kept &kept, const Int *bounds) {
  const Int channels = job.channels, reduced = job.reduced, cols = job.cols();
  const Excitation excitation(job, w, kept);
  const bool few = !job.last && !job.grain && job.images < job.threads;
  if (few && job.image() * Int(sizeof(T)) <= last_cache()) return forward_by_channels(job, x, y, excitation);
  const Units units(job, 1, sizeof(T), job.part());
  // Rows that slide are summed as they come, by one thread an image; for fewer images than threads, all before.
  const bool first = job.grain && job.images < job.threads && units.an_image > 1;
  Above<T> above_all(job, first ? job.images : 0);
  if (first) {
    shared(units.number, job.threads, [&](Int from, Int to) {
      Sums<false, T> adder(job, x);
      for (Int u = from; u < to; ++u) {
        const Unit unit = units.at(u);
        const Int stop = (unit.end_row(job) + job.grain - 1) / job.grain;
        above_all.each(adder, x + unit.image * job.image(), unit.image, unit.first_row(job) / job.grain, stop);
      }
    });
    for (Int n = 0; n < job.images; ++n) above_all.add(n, 0, job.grains());
  }
  const Int step = job.grain && !first ? units.an_image : 1;
  shared(units.number / step, job.threads, [&](Int begin, Int end) {
    const Int room = units.images * units.bands * cols;
    std::vector<float> z(room * channels), hidden(2 * room * reduced), g(room * channels);
    std::vector<double> sums(job.grain ? 0 : room * channels);
    Sums<false, T> adder(job, x);
    Scaling<false, T> scaling(job, x, y);
    Above<T> own(job, job.grain && !first ? 1 : 0), &above = first ? above_all : own;
    Int done = 0;  // grains of this image
    for (Int u = begin * step; u < end * step; ++u) {
      const Unit unit = units.at(u);
      const Int tiles = unit.tiles(job);
      if (!job.grain) sum_unit<false>(job, unit, adder, x, static_cast<const T *>(nullptr), sums.data());
      for (Int t = 0; t < tiles; ++t) {
        const Int band = unit.band + t / cols % unit.bands, image = unit.image + t / cols / unit.bands;
        float *to = z.data() + t * channels;
        if (!job.grain) {
          const double *s = sums.data() + t * channels, n = job.squeezed(band, t % cols);
          for (Int c = 0; c < channels; ++c) to[c] = s[c] / n;
          continue;
        }
        const Int *of = bounds + 2 * band, at = first ? image : 0;
        if (!first && band == unit.band) {
          if (band == 0) done = 0, std::fill(own.at(0, 0), own.at(0, 0) + channels, 0.0);
          // To the end of what the unit's last band sees, and of the unit, which may be overwritten after this.
          const Int *last = bounds + 2 * (unit.band + unit.bands - 1);
          const Int stop = std::max(last[1], (unit.end_row(job) + job.grain - 1) / job.grain);
          own.each(adder, x + image * job.image(), 0, done, stop), own.add(0, done, stop);
          done = std::max(done, stop);
        }
        const double *low = above.at(at, of[0]), *high = above.at(at, of[1]), n = seen(job, bounds, band);
        for (Int c = 0; c < channels; ++c) to[c] = (high[c] - low[c]) / n;
      }
      excitation.gates(z.data(), hidden.data(), g.data(), unit.first_tile(job), tiles);
      scaling.writer.ahead[0] = u + 1 < end * step ? Ahead<T>(job, x, units.at(u + 1)) : Ahead<T>();
      scaling.unit(unit, g.data(), nullptr);
    }
    fence();
  });
}

// dx, and the gradients of both layers' sums: tiles x R and tiles x C.
template <class T>
void backward(const Job &job, const T *x, const T *grad, T *dx, const Layers &w, const float *hidden, const float *gates,
              float *to_a1, float *to_a2, const Int *bounds) {
  const Int channels = job.channels, reduced = job.reduced, cols = job.cols();
  const Units units(job, 2, sizeof(T), job.part() || job.grain);
  std::vector<float> turned(channels * reduced);
  transpose(w.w2, turned.data(), channels, reduced);
  Job by_grain = job;  // rows that have one gate and one share
  if (job.grain) by_grain.tall = job.grain;
  const Int grains = by_grain.bands();
  shared(units.number, job.threads, [&](Int from, Int to) {
    const Int room = units.images * units.bands * cols;
    std::vector<float> share(room * channels), of_grains(job.grain ? 2 * units.images * grains * channels : 0);
    std::vector<double> sums(room * channels), step(job.grain ? (grains + 1) * channels : 0);
    Sums<true, T> adder(job, grad);
    Scaling<true, T> scaling(by_grain, grad, dx);
    for (Int u = from; u < to; ++u) {
      Unit unit = units.at(u);
      const Int tiles = unit.tiles(job), first = unit.first_tile(job);
      const float *g = gates + first * channels, *a = hidden + first * reduced, *s = share.data();
      float *d1 = to_a1 + first * reduced, *d2 = to_a2 + first * channels;
      sum_unit<true>(job, unit, adder, grad, x, sums.data());
      for (Int i = 0; i < tiles * channels; ++i) d2[i] = sums[i] * gate_slope(job.gate, g[i]);
      rows_by_rows(d2, turned.data(), nullptr, d1, tiles, reduced, channels);
      for (Int i = 0; i < tiles * reduced; ++i) d1[i] *= act_slope(job.act, a[i]);
      rows_by_columns(d1, w.w1, nullptr, share.data(), tiles, reduced, channels);
      for (Int t = 0; t < tiles; ++t) {
        const Int band = unit.band + t / cols % unit.bands;
        const float n = job.grain ? seen(job, bounds, band) : job.squeezed(band, t % cols);
        for (Int c = 0; c < channels; ++c) share[t * channels + c] /= n;
      }
      if (job.grain) {
        // A band's share begins at the first grain that it sees and ends after the last.
        float *const gate = of_grains.data(), *const sum = gate + unit.images * grains * channels;
        for (Int n = 0; n < unit.images; ++n) {
          std::fill(step.begin(), step.end(), 0.0);
          for (Int band = 0; band < unit.bands; ++band)
            for (Int c = 0; c < channels; ++c) {
              const double v = share[(n * unit.bands + band) * channels + c];
              step[bounds[2 * band] * channels + c] += v, step[bounds[2 * band + 1] * channels + c] -= v;
            }
          for (Int k = 0; k < grains; ++k)
            for (Int c = 0; c < channels; ++c) {
              if (k > 0) step[k * channels + c] += step[(k - 1) * channels + c];
              sum[(n * grains + k) * channels + c] = step[k * channels + c];
              gate[(n * grains + k) * channels + c] = g[(n * unit.bands + k * job.grain / job.tall) * channels + c];
            }
        }
        unit.bands = grains, g = gate, s = sum;
      }
      scaling.writer.ahead[0] = u + 1 < to ? Ahead<T>(job, grad, units.at(u + 1)) : Ahead<T>();
      scaling.writer.ahead[1] = u + 1 < to ? Ahead<T>(job, x, units.at(u + 1)) : Ahead<T>();
      scaling.unit(unit, g, s);
    }
    fence();
  });
}

// Gradients of the weights and biases, from those of both layers' sums.
inline void of_weights(Int tiles, Int channels, Int reduced, Int act, const float *to_a1, const float *to_a2,
                       const float *descriptors, const float *hidden, float *w1, float *b1, float *w2, float *b2) {
  std::vector<float> turned(tiles * std::max(channels, reduced)), h(tiles * reduced);
  transpose(to_a1, turned.data(), tiles, reduced);
  rows_by_columns(turned.data(), descriptors, nullptr, w1, reduced, tiles, channels);
  activate(act, hidden, h.data(), tiles * reduced);
  transpose(to_a2, turned.data(), tiles, channels);
  rows_by_columns(turned.data(), h.data(), nullptr, w2, channels, tiles, reduced);
  std::fill(b1, b1 + reduced, 0.0f), std::fill(b2, b2 + channels, 0.0f);
  for (Int t = 0; t < tiles; ++t) {
    for (Int r = 0; r < reduced; ++r) b1[r] += to_a1[t * reduced + r];
    for (Int c = 0; c < channels; ++c) b2[c] += to_a2[t * channels + c];
  }
}

// ``call`` with a null pointer of the type of the job's maps. 0, or 1 where there is no such type or no memory.
template <class Call>
int typed(const Int *numbers, Call call) {
  Job job;
  std::memcpy(&job, numbers, sizeof job);
  try {
    if (job.type == 0) return call(job, static_cast<float *>(nullptr)), 0;
    if (job.type == 1) return call(job, static_cast<BFloat16 *>(nullptr)), 0;
#if defined(TILEDSE_FLOAT16)
    if (job.type == 2) return call(job, static_cast<Float16 *>(nullptr)), 0;
#endif
  } catch (const std::exception &) {
  }
  return 1;
}

}  // namespace tiledse

using namespace tiledse;

extern "C" {

// What op/by_cpp.py asks before it calls anything else: a checksum of the files that this was built from (setup.py).
#if !defined(TILEDSE_SOURCES)
#define TILEDSE_SOURCES 0u  // built by hand: op/by_cpp.py does not call it
#endif
unsigned tiledse_sources() { return TILEDSE_SOURCES; }

int tiledse_has_float16() {
#if defined(TILEDSE_FLOAT16)
  return 1;
#else
  return 0;
#endif
}

void tiledse_use_threads_of(void *torch_parallel_for) { parallel = reinterpret_cast<Parallel>(torch_parallel_for); }

// y, and unless null descriptors, hidden and gates. bounds: (bands, 2) where tiles slide.
int tiledse_forward(const void *x, void *y, const float *w1, const float *b1, const float *w2, const float *b2,
                    float *descriptors, float *hidden, float *gates, const Int *bounds, const Int *numbers) {
  return typed(numbers, [&](const Job &job, auto type) {
    typedef decltype(type) Map;
    forward(job, Map(x), Map(y), {w1, b1, w2, b2}, {descriptors, hidden, gates}, bounds);
  });
}

int tiledse_backward(const void *x, const void *grad, void *dx, const float *w1, const float *w2, const float *hidden,
                     const float *gates, float *to_a1, float *to_a2, const Int *bounds, const Int *numbers) {
  return typed(numbers, [&](const Job &job, auto type) {
    typedef decltype(type) Map;
    backward(job, Map(x), Map(grad), Map(dx), {w1, nullptr, w2, nullptr}, hidden, gates, to_a1, to_a2, bounds);
  });
}

int tiledse_of_weights(Int tiles, Int channels, Int reduced, Int act, const float *to_a1, const float *to_a2,
                       const float *descriptors, const float *hidden, float *w1, float *b1, float *w2, float *b2) {
  try {
    of_weights(tiles, channels, reduced, act, to_a1, to_a2, descriptors, hidden, w1, b1, w2, b2);
    return 0;
  } catch (const std::exception &) {
    return 1;
  }
}
}
