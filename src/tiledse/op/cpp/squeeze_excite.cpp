// The operator on float32 maps on a CPU, forward and backward, unit by unit: what has just been summed is still in the
// cache when it is scaled, and the next unit is on its way from memory. What op/fused_kernels.py is for a GPU.

#include <atomic>
#include <thread>

#include "functions.h"
#include "maps.h"

namespace tiledse {

// GOMP_parallel of the OpenMP that torch runs on: its threads are there already, and those of another pool would wait
// for a processor while torch's still look for work.
typedef void (*Parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);
Parallel parallel = nullptr;

// Units are dealt out in equal runs, one for each thread; running strips need all strips above, so whole images.
template <class Work>
void shared(const Job &job, const Units &units, const Work &work) {
  struct Runs {
    const Work &work;
    Int step, number, parts;
    std::atomic<Int> next;
    void take() {
      for (Int k = next++; k < parts; k = next++) work(number * k / parts * step, number * (k + 1) / parts * step);
    }
  };
  const Int step = job.running ? units.an_image : 1, number = units.number / step;
  const Int threads = std::max<Int>(1, std::min(job.threads, number));
  Runs runs{work, step, number, threads, {0}};
  if (threads == 1) {
    runs.take();
  } else if (parallel) {
    parallel([](void *data) { static_cast<Runs *>(data)->take(); }, &runs, threads, 0);
  } else {
    std::vector<std::thread> others;
    for (Int t = 1; t < threads; ++t) others.emplace_back(&Runs::take, &runs);
    runs.take();
    for (std::thread &other : others) other.join();
  }
}

template <bool kTwo>
void sum_unit(const Job &job, const Unit &unit, Sums<kTwo> &sums, const float *x, const float *y, double *out) {
  const Int plane = job.height * job.width, image = job.channels * plane, of_band = job.cols() * job.channels;
  const bool part = job.part() && !kTwo;
  for (Int n = 0; n < unit.images; ++n) {
    const Int at = (unit.image + n) * image;
    const float *a = x + at, *b = kTwo ? y + at : nullptr;
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

// out = x by the gates (tiles, C) of a unit, plus what each element gets of ``shares``.
template <bool kAdd>
class Scaling {
 public:
  Scaling(const Job &job, const float *x, float *out) : writer(job.past_cache), job_(job), x_(x), out_(out) {}

  Writer writer;

  void unit(const Unit &unit, const float *gates, const float *shares) {
    const Int of_band = job_.cols() * job_.channels, image = job_.channels * job_.height * job_.width;
    for (Int n = 0; n < unit.images; ++n) {
      const Int at = (unit.image + n) * image;
      const float *g = gates + n * unit.bands * of_band, *s = kAdd ? shares + n * unit.bands * of_band : g;
      if (job_.last)
        for (Int k = 0; k < unit.bands; ++k) pixels(at, unit.band + k, g + k * of_band, s + k * of_band);
      else if (job_.cols() > 1)
        for (Int c = 0; c < job_.channels; ++c)
          for (Int k = 0; k < unit.bands; ++k)
            columns(at + plane(c), unit.band + k, g + k * of_band + c, s + k * of_band + c);
      else if (job_.rows(unit.band) * job_.width < kLong && !job_.part() && shortest(unit) >= kWide)
        short_runs(at, unit, g, s);
      else
        for (Int c = 0; c < job_.channels; ++c)
          for (Int k = 0; k < unit.bands; ++k)
            each_part(unit.band + k, [&](Int from, Int stop, bool added) {
              const Int run = at + plane(c) + from * job_.width, channel = k * job_.channels + c;
              writer.run<kAdd>(x_ + run, out_ + run, (stop - from) * job_.width, g[channel], added ? s[channel] : 0.0f);
            });
    }
  }

 private:
  static const Int kLong = 512;  // numbers that are worth a run of their own

  Int shortest(const Unit &unit) const { return job_.rows(unit.band + unit.bands - 1) * job_.width; }
  Int plane(Int c) const { return c * job_.height * job_.width; }

  // Gates or shares by element, with room for the vectors that reach over the end.
  static float *room(std::vector<float> &of, Int n) {
    if (Int(of.size()) < n + kLine) of.resize(n + kLine);
    return of.data();
  }
  static void repeat(float *values, Int period) {
    for (Int i = period; i < period + kLine; ++i) values[i] = values[i - period];
  }

  // The rows of a band that get a share: all, or those that upper and middle squeeze.
  template <class Write>
  void each_part(Int band, Write write) const {
    const Int top = job_.top(band), end = top + job_.rows(band);
    if (!kAdd || !job_.part()) return write(top, end, true);
    if (job_.first > top) write(top, job_.first, false);
    write(job_.first, job_.stop, true);
    if (job_.stop < end) write(job_.stop, end, false);
  }

  // NCHW, whole rows, few elements to a gate.
  void short_runs(Int at, const Unit &unit, const float *gates, const float *shares) {
    const Int rows = unit.rows(job_), channels = job_.channels, bands = unit.bands;
    float *g = room(gates_, channels * bands), *s = room(shares_, channels * bands);
    lengths_.resize(bands);
    for (Int k = 0; k < bands; ++k) lengths_[k] = job_.rows(unit.band + k) * job_.width;
    for (Int c = 0; c < channels; ++c)
      for (Int k = 0; k < bands; ++k) {
        g[c * bands + k] = gates[k * channels + c];
        if (kAdd) s[c * bands + k] = shares[k * channels + c];
      }
    const Int first = at + unit.first_row(job_) * job_.width, step = rows == job_.height ? channels : 1;
    for (Int c = 0; c < channels; c += step) {
      const Int run = first + plane(c);
      writer.runs<kAdd>(x_ + run, out_ + run, step * rows * job_.width, g + c * bands, s + c * bands, lengths_.data(), bands);
    }
  }

  // NCHW, a channel of a band that has columns: gates and shares are that of the channel, C apart.
  void columns(Int plane, Int band, const float *gates, const float *shares) {
    const Int width = job_.width, run = plane + job_.top(band) * width;
    float *g = room(gates_, width), *s = room(shares_, width);
    for (Int t = 0, j = 0; t < job_.cols(); ++t)
      for (Int end = j + job_.tile_width(t); j < end; ++j) {
        g[j] = gates[t * job_.channels];
        if (kAdd) s[j] = shares[t * job_.channels];
      }
    repeat(g, width);
    if (kAdd) repeat(s, width);
    writer.run<kAdd>(x_ + run, out_ + run, job_.rows(band) * width, g, s, width);
  }

  // channels_last
  void pixels(Int image, Int band, const float *gates, const float *shares) {
    const Int channels = job_.channels, row = job_.width * channels, cols = job_.cols(), length = channels + kLine;
    float *g = room(gates_, cols * length), *s = room(shares_, cols * length);
    for (Int t = 0; t < cols; ++t) {
      std::copy(gates + t * channels, gates + (t + 1) * channels, g + t * length), repeat(g + t * length, channels);
      if (kAdd)
        std::copy(shares + t * channels, shares + (t + 1) * channels, s + t * length), repeat(s + t * length, channels);
    }
    each_part(band, [&](Int from, Int stop, bool added) {
      for (Int r = from; r < (cols > 1 ? stop : from + 1); ++r)
        for (Int t = 0; t < cols; ++t) {
          const Int run = image + r * row + t * job_.wide * channels;
          const Int n = cols > 1 ? job_.tile_width(t) * channels : (stop - from) * row;
          if (added)
            writer.run<kAdd>(x_ + run, out_ + run, n, g + t * length, s + t * length, channels);
          else
            writer.run<false>(x_ + run, out_ + run, n, g + t * length, s + t * length, channels);
        }
    });
  }

  const Job &job_;
  const float *const x_;
  float *const out_;
  std::vector<float> gates_, shares_;
  std::vector<Int> lengths_;
};

}  // namespace tiledse

using namespace tiledse;

extern "C" {

void tiledse_use_threads_of(void *gomp_parallel) { parallel = reinterpret_cast<Parallel>(gomp_parallel); }

// y = x by its gates. w1: R x C, w2: C x R. Unless null, descriptors, hidden (before its activation) and gates are kept:
// tiles x C, R and C, a row for each tile.
void tiledse_forward(const float *x, float *y, const float *w1, const float *b1, const float *w2, const float *b2,
                     float *descriptors, float *hidden, float *gates, const Int *numbers) {
  Job job;
  std::memcpy(&job, numbers, sizeof job);
  const Int channels = job.channels, reduced = job.reduced, cols = job.cols();
  const Units units(job, 1, job.part());
  // Turned, the second layer is summed by vectors of channels; for few tiles turning takes longer than it saves.
  std::vector<float> turned(job.tiles() > reduced / 3 ? channels * reduced : 0);
  if (!turned.empty()) transpose(w2, turned.data(), channels, reduced);
  shared(job, units, [&](Int from, Int to) {
    const Int room = units.images * units.bands * cols;
    std::vector<float> z(room * channels), a(room * reduced), h(room * reduced), g(room * channels);
    std::vector<double> sums(room * channels), above(channels);
    Sums<false> adder(job, x);
    Scaling<false> scaling(job, x, y);
    for (Int u = from; u < to; ++u) {
      const Unit unit = units.at(u);
      const Int tiles = unit.tiles(job), first = unit.first_tile(job);
      sum_unit<false>(job, unit, adder, x, nullptr, sums.data());
      for (Int t = 0; t < tiles; ++t) {
        const Int band = unit.band + t / cols % unit.bands;
        double *s = sums.data() + t * channels, n = job.squeezed(band, t % cols);
        if (job.running) {
          if (band > 0)
            for (Int c = 0; c < channels; ++c) s[c] += above[c];
          std::copy(s, s + channels, above.begin());
          n = (job.top(band) + job.rows(band)) * job.width;
        }
        for (Int c = 0; c < channels; ++c) z[t * channels + c] = s[c] / n;
      }
      rows_by_rows(z.data(), w1, b1, a.data(), tiles, reduced, channels);
      activate(job.act, a.data(), h.data(), tiles * reduced);
      if (turned.empty())
        rows_by_rows(h.data(), w2, b2, g.data(), tiles, channels, reduced);
      else
        rows_by_columns(h.data(), turned.data(), b2, g.data(), tiles, reduced, channels);
      open_gates(job.gate, g.data(), tiles * channels);
      if (descriptors) {
        std::copy(z.begin(), z.begin() + tiles * channels, descriptors + first * channels);
        std::copy(a.begin(), a.begin() + tiles * reduced, hidden + first * reduced);
        std::copy(g.begin(), g.begin() + tiles * channels, gates + first * channels);
      }
      scaling.writer.ahead[0] = u + 1 < to ? Ahead(job, x, units.at(u + 1)) : Ahead();
      scaling.unit(unit, g.data(), nullptr);
    }
    fence();
  });
}

// dx, and the gradients of both layers' sums: tiles x R and tiles x C.
void tiledse_backward(const float *x, const float *grad, float *dx, const float *w1, const float *w2,
                      const float *hidden, const float *gates, float *to_a1, float *to_a2, const Int *numbers) {
  Job job;
  std::memcpy(&job, numbers, sizeof job);
  const Int channels = job.channels, reduced = job.reduced, cols = job.cols();
  const Units units(job, 2, job.part() || job.running);
  std::vector<float> turned(channels * reduced);
  transpose(w2, turned.data(), channels, reduced);
  shared(job, units, [&](Int from, Int to) {
    const Int room = units.images * units.bands * cols;
    std::vector<float> share(room * channels);
    std::vector<double> sums(room * channels);
    Sums<true> adder(job, grad);
    Scaling<true> scaling(job, grad, dx);
    for (Int u = from; u < to; ++u) {
      const Unit unit = units.at(u);
      const Int tiles = unit.tiles(job), first = unit.first_tile(job);
      const float *g = gates + first * channels, *a = hidden + first * reduced;
      float *d1 = to_a1 + first * reduced, *d2 = to_a2 + first * channels;
      sum_unit<true>(job, unit, adder, grad, x, sums.data());
      for (Int i = 0; i < tiles * channels; ++i) d2[i] = sums[i] * gate_slope(job.gate, g[i]);
      rows_by_rows(d2, turned.data(), nullptr, d1, tiles, reduced, channels);
      for (Int i = 0; i < tiles * reduced; ++i) d1[i] *= act_slope(job.act, a[i]);
      rows_by_columns(d1, w1, nullptr, share.data(), tiles, reduced, channels);
      for (Int t = tiles - 1; t >= 0; --t) {
        const Int band = unit.band + t / cols % unit.bands;
        float *s = share.data() + t * channels;
        const float n = job.running ? (job.top(band) + job.rows(band)) * job.width : job.squeezed(band, t % cols);
        // A row is in the mean of its own running strip and of all below.
        const float *below = job.running && band + 1 < job.bands() ? s + channels : nullptr;
        for (Int c = 0; c < channels; ++c) s[c] = s[c] / n + (below ? below[c] : 0.0f);
      }
      scaling.writer.ahead[0] = u + 1 < to ? Ahead(job, grad, units.at(u + 1)) : Ahead();
      scaling.writer.ahead[1] = u + 1 < to ? Ahead(job, x, units.at(u + 1)) : Ahead();
      scaling.unit(unit, g, share.data());
    }
    fence();
  });
}
}
