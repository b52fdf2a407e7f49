// What is written of a map: runs of it times their gates, and bands and units of such runs.

#pragma once

#include "maps.h"

namespace tiledse {

// Writes runs of a map as out = x * gate (+ share), past the cache where that is asked for.
template <class T>
class Writer {
 public:
  explicit Writer(bool past_cache) : past_cache_(past_cache && (sizeof(T) == 4 || kWide > 4)) {}

  Ahead<T> ahead[2];  // what to fetch while this is written

  // One gate, and one share, for all n numbers.
  template <bool kAdd>
  void run(const T *x, T *out, Int n, float gate, float share) {
    const Vector g = all(gate), s = all(share);
    Int i = 0;
    write(
        out, n, i, [&] { return kAdd ? load(x + i) * g + s : load(x + i) * g; },
        [&] { return kAdd ? number(x + i) * gate + share : number(x + i) * gate; }, [&](Int by) { i += by; });
  }

  // A gate and a share for each number.
  template <bool kAdd>
  void run(const T *x, T *out, Int n, const float *gates, const float *shares) {
    Int i = 0;
    write(
        out, n, i, [&] { return kAdd ? load(x + i) * load(gates + i) + load(shares + i) : load(x + i) * load(gates + i); },
        [&] { return kAdd ? number(x + i) * gates[i] + shares[i] : number(x + i) * gates[i]; }, [&](Int by) { i += by; });
  }

  // Gates and shares that repeat with a period; both are kPad numbers longer than that.
  template <bool kAdd>
  void run(const T *x, T *out, Int n, const float *gates, const float *shares, Int period) {
    Int i = 0, p = 0;  // p: i % period
    write(
        out, n, i,
        [&] { return kAdd ? load(x + i) * load(gates + p) + load(shares + p) : load(x + i) * load(gates + p); },
        [&] { return kAdd ? number(x + i) * gates[p] + shares[p] : number(x + i) * gates[p]; },
        [&](Int by) {
          i += by, p += by;
          if (p >= period) p = p < 2 * period ? p - period : p % period;
        });
  }

  // Short runs behind each other, n numbers in all: a gate and a share for each, with one to spare, and their lengths,
  // which repeat after so many runs. None is shorter than a vector.
  template <bool kAdd>
  void runs(const T *x, T *out, Int n, const float *gates, const float *shares, const Int *lengths, Int period) {
    if (past_cache_ && n * Int(sizeof(T)) >= kShortRun)
      all_runs<kAdd, true>(x, out, n, gates, shares, lengths, period);
    else
      all_runs<kAdd, false>(x, out, n, gates, shares, lengths, period);
  }

 private:
  template <bool kAdd, bool kPast>
  void all_runs(const T *x, T *out, Int n, const float *gates, const float *shares, const Int *lengths, Int period) {
    Int i = 0, k = 0, left = lengths[0];
    const auto next = [&] {
      ++gates, k = k + 1 == period ? 0 : k + 1, left += lengths[k];
      if (kAdd) ++shares;
    };
    const auto one = [&] {
      put(out + i, kAdd ? number(x + i) * gates[0] + shares[0] : number(x + i) * gates[0]);
      ++i;
      if (--left <= 0) next();
    };
    const auto vector = [&](Int at, Vector gate, Vector share) {
      const Vector v = kAdd ? load(x + at) * gate + share : load(x + at) * gate;
      kPast ? stream(out + at, v) : store(out + at, v);
    };
    if (kPast)
      while (!starts_line(out + i)) one();
    while (i + kWide <= n) {
      const Vector gate = all(gates[0]), share = all(kAdd ? shares[0] : 0.0f);
      const Int whole = std::min(left, n - i), lines = i + whole / line<T>() * line<T>(), end = i + whole / kWide * kWide;
      left += i;
      for (; i < lines; i += line<T>()) {
        fetch();
        for (Int v = 0; v < line<T>(); v += kWide) vector(i + v, gate, share);
      }
      if (i < end) fetch();
      for (; i < end; i += kWide) vector(i, gate, share);
      left -= i;
      if (i + kWide > n) break;
      if (left > 0) {  // one that reaches into the next run
        vector(i, joined(gate, all(gates[1]), left), kAdd ? joined(share, all(shares[1]), left) : share);
        i += kWide, left -= kWide;
      }
      next();
    }
    while (i < n) one();
  }

  template <class Vectors, class Number, class Step>
  void write(T *out, Int n, Int &i, Vectors vector, Number number, Step step) {
    const auto one = [&] { put(out + i, number()), step(1); };
    if (past_cache_ && n * Int(sizeof(T)) >= kShortRun) {
      while (!starts_line(out + i)) one();
      while (i + line<T>() <= n) {
        fetch();
        for (Int v = 0; v < line<T>(); v += kWide) stream(out + i, vector()), step(kWide);
      }
    } else {
      while (i + line<T>() <= n) {
        fetch();
        for (Int v = 0; v < line<T>(); v += kWide) store(out + i, vector()), step(kWide);
      }
    }
    if (i < n) fetch();
    while (i + kWide <= n) store(out + i, vector()), step(kWide);
    while (i < n) one();
  }
  void fetch() { ahead[0].step(), ahead[1].step(); }

  const bool past_cache_;
};

// out = x by the gates (tiles, C) of a unit, plus what each element gets of ``shares``.
template <bool kAdd, class T>
class Scaling {
 public:
  Scaling(const Job &job, const T *x, T *out) : writer(job.past_cache), job_(job), x_(x), out_(out) {}

  Writer<T> writer;

  void unit(const Unit &unit, const float *gates, const float *shares) {
    const Int of_band = job_.cols() * job_.channels;
    for (Int n = 0; n < unit.images; ++n) {
      const Int at = (unit.image + n) * job_.image();
      const float *g = gates + n * unit.bands * of_band, *s = kAdd ? shares + n * unit.bands * of_band : g;
      if (job_.last)
        for (Int k = 0; k < unit.bands; ++k) pixels(at, unit.band + k, g + k * of_band, s + k * of_band);
      else if (job_.cols() > 1)
        for (Int c = 0; c < job_.channels; ++c)
          for (Int k = 0; k < unit.bands; ++k)
            columns(at + plane(c), unit.band + k, g + k * of_band + c, s + k * of_band + c);
      else if (job_.rows(unit.band) * job_.width < kLong && !job_.part() && shortest(unit) >= kWide)
        short_runs(at, unit, g, s);
      else if (job_.rows(unit.band) * job_.width < kLong && !job_.part())
        shortest_runs(at, unit, g, s);
      else
        for (Int c = 0; c < job_.channels; ++c)
          for (Int k = 0; k < unit.bands; ++k)
            each_part(unit.band + k, [&](Int from, Int stop, bool added) {
              const Int run = at + plane(c) + from * job_.width, channel = k * job_.channels + c;
              writer.template run<kAdd>(x_ + run, out_ + run, (stop - from) * job_.width, g[channel], added ? s[channel] : 0.0f);
            });
    }
  }

 private:
  static const Int kLong = 512, kSpread = 2048;  // numbers that are worth a run of their own; that get gates at once

  Int shortest(const Unit &unit) const { return job_.rows(unit.band + unit.bands - 1) * job_.width; }
  Int plane(Int c) const { return c * job_.height * job_.width; }

  // Gates or shares by element, with room for the vectors that reach over the end.
  static float *room(std::vector<float> &of, Int n) {
    if (Int(of.size()) < n + kPad) of.resize(n + kPad);
    return of.data();
  }
  static void repeat(float *values, Int period) {
    for (Int i = period; i < period + kPad; ++i) values[i] = values[i - period];
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
      const Int run = first + plane(c), of = c * bands;
      writer.template runs<kAdd>(x_ + run, out_ + run, step * rows * job_.width, g + of, s + of, lengths_.data(), bands);
    }
  }

  // The same for runs shorter than a vector: a gate for each number, for some channels at once where they are one run.
  void shortest_runs(Int at, const Unit &unit, const float *gates, const float *shares) {
    const Int rows = unit.rows(job_), width = job_.width, channels = job_.channels, length = rows * width;
    float *g = room(gates_, kSpread + length), *s = room(shares_, kAdd ? kSpread + length : 0);
    Int filled = 0, run = at + unit.first_row(job_) * width;
    for (Int c = 0; c < channels; ++c) {
      for (Int k = 0; k < unit.bands; ++k) {
        const Int end = filled + job_.rows(unit.band + k) * width, of = k * channels + c;
        const Vector gate = all(gates[of]), share = all(kAdd ? shares[of] : 0.0f);
        for (; filled < end; filled += kWide) {
          store(g + filled, gate);
          if (kAdd) store(s + filled, share);
        }
        filled = end;
      }
      const bool joins = rows == job_.height && c + 1 < channels;
      if (joins && filled < kSpread) continue;
      // To the end of a line, if more follows.
      const Int over = joins ? reinterpret_cast<uintptr_t>(out_ + run + filled) % 64 / sizeof(T) : 0, n = filled - over;
      writer.template run<kAdd>(x_ + run, out_ + run, n, g, s);
      std::copy(g + n, g + filled, g);
      if (kAdd) std::copy(s + n, s + filled, s);
      run += joins || rows == job_.height ? n : job_.height * width, filled = over;
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
    writer.template run<kAdd>(x_ + run, out_ + run, job_.rows(band) * width, g, s, width);
  }

  // channels_last
  void pixels(Int image, Int band, const float *gates, const float *shares) {
    const Int channels = job_.channels, row = job_.width * channels, cols = job_.cols(), length = channels + kPad;
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
            writer.template run<kAdd>(x_ + run, out_ + run, n, g + t * length, s + t * length, channels);
          else
            writer.template run<false>(x_ + run, out_ + run, n, g + t * length, s + t * length, channels);
        }
    });
  }

  const Job &job_;
  const T *const x_;
  T *const out_;
  std::vector<float> gates_, shares_;
  std::vector<Int> lengths_;
};

}  // namespace tiledse
