// A map cut into tiles and into units of work: what is summed over it.
//
// NCHW and channels_last ("last"). A band is a row of tiles, all columns of it. A unit is so many bands of an image, or
// so many whole images, that it is still in the second-level cache when, once summed, it is scaled.

#pragma once

#include <unistd.h>

#include <vector>

#include "vectors.h"

namespace tiledse {

const Int kUnitBytes = 256 << 10, kFewWeightBytes = 64 << 10;
const Int kSummed = 256;    // rows or pixels that are summed in float32
const Int kShortRun = 512;  // bytes: too many ends of such runs would share a line with the next one

// Bytes of the processor's last cache, or of a common one where the system does not say.
inline Int last_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static const Int found = sysconf(_SC_LEVEL3_CACHE_SIZE);
  if (found > 0) return found;
#endif
  return 16 << 20;
}

// What op/by_cpp.py has as numbers. grain: rows that no gate of a sliding tile tells apart; 0 where tiles do not slide.
struct Job {
  Int images, channels, height, width, tall, wide, first, stop, grain, reduced, act, gate, last, past_cache, threads, type;

  Int bands() const { return (height + tall - 1) / tall; }
  Int cols() const { return (width + wide - 1) / wide; }
  Int grains() const { return grain ? (height + grain - 1) / grain : 0; }
  Int image() const { return channels * height * width; }
  Int tiles() const { return images * bands() * cols(); }
  Int top(Int band) const { return band * tall; }
  Int rows(Int band) const { return std::min(tall, height - top(band)); }
  Int tile_width(Int col) const { return std::min(wide, width - col * wide); }
  // upper and middle: what is squeezed is not what is scaled.
  bool part() const { return stop - first != height; }
  Int squeezed(Int band, Int col) const { return (part() ? stop - first : rows(band)) * tile_width(col); }
};

struct Unit {
  Int image, images, band, bands;
  Int tiles(const Job &job) const { return images * bands * job.cols(); }
  Int first_tile(const Job &job) const { return (image * job.bands() + band) * job.cols(); }
  Int first_row(const Job &job) const { return job.top(band); }
  Int end_row(const Job &job) const { return std::min((band + bands) * job.tall, job.height); }
  Int rows(const Job &job) const { return end_row(job) - first_row(job); }
};

// How a job is cut; ``whole`` asks for whole images.
struct Units {
  Int bands, images, an_image, number;  // bands or images in a unit; units in an image, where it has several; of all
  const Job &job;

  Units(const Job &j, Int inputs, Int bytes, bool whole) : job(j) {
    const Int row_bytes = bytes * inputs * job.channels * job.width, all = job.images * job.height * row_bytes;
    // An image in NCHW is one run of memory, a band of it as many as it has channels, whose lines take each other's place
    // in the cache: 0.9 to 1.5 of SE's time for maps of 14 to 22 MB, whole images 0.7 to 0.8.
    whole |= !job.last && job.images >= job.threads && row_bytes * job.height <= last_cache();
    // A quarter of a second-level cache of 1 MB: the next unit is fetched beside the present one. Larger weights are read
    // for four tiles at once, if those fit that cache.
    const Int four = 4 * row_bytes * job.tall / job.cols();
    const bool heavy = 8 * job.channels * job.reduced > kFewWeightBytes && four <= 4 * kUnitBytes;
    const Int most = job.threads > 1 ? all / (4 * job.threads) : all;
    const Int room = std::min(heavy ? std::max(four, kUnitBytes) : kUnitBytes, most);
    const Int fit = room / (row_bytes * job.tall);
    images = std::max<Int>(1, room / (row_bytes * job.height));
    bands = whole || fit >= job.bands() ? job.bands() : std::max<Int>(1, fit);
    if (bands < job.bands()) images = 1;
    an_image = (job.bands() + bands - 1) / bands;
    number = (job.images + images - 1) / images * an_image;
  }
  Unit at(Int index) const {
    const Int image = index / an_image * images, band = index % an_image * bands;
    return {image, std::min(images, job.images - image), band, std::min(bands, job.bands() - band)};
  }
};

// Fetches the memory of a unit into the second-level cache, a line with each step.
template <class T>
class Ahead {
 public:
  Ahead() : at_(nullptr), end_(nullptr), stride_(0), length_(0), left_(0) {}
  Ahead(const Job &job, const T *x, const Unit &unit) {
    if (job.last || unit.bands == job.bands()) {
      const Int row = job.last ? job.channels * job.width : 0;
      at_ = x + unit.image * job.image() + unit.first_row(job) * row;
      length_ = job.last && unit.images == 1 ? unit.rows(job) * row : unit.images * job.image();
      stride_ = left_ = 0;
    } else {
      at_ = x + unit.image * job.image() + unit.first_row(job) * job.width;
      length_ = unit.rows(job) * job.width, stride_ = job.height * job.width, left_ = job.channels - 1;
    }
    end_ = at_ + length_;
  }
  void step() {
    if (at_ >= end_) {
      if (left_ == 0) return;
      --left_, end_ += stride_, at_ = end_ - length_;
    }
    __builtin_prefetch(at_, 0, 2);
    at_ += line<T>();
  }

 private:
  const T *at_, *end_;
  Int stride_, length_, left_;
};

// Sums by tile and channel over the rows [from, stop) of a band: of x, or of x * y. out: (tiles, C), this band's.
template <bool kTwo, class T>
class Sums {
 public:
  // x: the map that is summed.
  Sums(const Job &job, const T *x)
      : job_(job),
        cols_(job.cols()),
        end_(x + job.images * job.image()),
        // Pixels of which the channels fill whole vectors, so that any number of channels is summed by vectors.
        fold_(cols_ == 1 && job.channels <= 512 ? kWide / common(job.channels, kWide) : 1),
        lane_(std::max(fold_ * job.channels, job.width) + kWide),
        whole_(job.last ? cols_ * job.channels : cols_) {}

  void planes(const T *x, const T *y, Int c, Int from, Int stop, double *out, Int stride) {  // NCHW, a channel
    const Int width = job_.width, at = c * job_.height * width;
    if (cols_ == 1) {
      const T *a = x + at + from * width;
      *out = sum<kTwo>(a, kTwo ? y + at + from * width : nullptr, (stop - from) * width, end_ - a >= kWide);
      return;
    }
    std::fill(whole_.begin(), whole_.end(), 0.0);
    for (Int r0 = from; r0 < stop; r0 += kSummed) {
      std::fill(lane_.begin(), lane_.end(), 0.0f);
      const Int end = std::min(r0 + kSummed, stop);
      // Whole vectors, which reach into the next row, if there is one.
      const bool reach = end_ - (x + at + end * width) >= kWide;
      const Int read = reach ? (width + kWide - 1) / kWide * kWide : width;
      add(x + at + r0 * width, kTwo ? y + at + r0 * width : nullptr, lane_.data(), read, end - r0, width);
      for (Int t = 0; t < cols_; ++t) {
        double s = 0;
        for (Int j = t * job_.wide, n = j + job_.tile_width(t); j < n; ++j) s += lane_[j];
        whole_[t] += s;
      }
    }
    for (Int t = 0; t < cols_; ++t) out[t * stride] = whole_[t];
  }

  void pixels(const T *x, const T *y, Int from, Int stop, double *out) {  // channels_last
    const Int channels = job_.channels, row = job_.width * channels;
    std::fill(out, out + cols_ * channels, 0.0);
    if (cols_ == 1) {
      const Int length = fold_ * channels, all = (stop - from) * job_.width;
      for (Int p0 = 0; p0 < all; p0 += kSummed * fold_) {
        std::fill(lane_.begin(), lane_.begin() + length, 0.0f);
        const Int n = std::min(kSummed * fold_, all - p0), full = n / fold_, at = from * row + p0 * channels;
        add(x + at, kTwo ? y + at : nullptr, lane_.data(), length, full, length);
        const Int rest = at + full * length;
        add(x + rest, kTwo ? y + rest : nullptr, lane_.data(), channels, n - full * fold_, channels);
        for (Int k = 0; k < fold_; ++k)
          for (Int c = 0; c < channels; ++c) out[c] += lane_[k * channels + c];
      }
      return;
    }
    for (Int r = from; r < stop; ++r)
      for (Int t = 0; t < cols_; ++t)
        for (Int j = 0, n = job_.tile_width(t); j < n; j += kSummed) {
          std::fill(lane_.begin(), lane_.begin() + channels, 0.0f);
          const Int at = r * row + (t * job_.wide + j) * channels;
          add(x + at, kTwo ? y + at : nullptr, lane_.data(), channels, std::min(kSummed, n - j), channels);
          for (Int c = 0; c < channels; ++c) out[t * channels + c] += lane_[c];
        }
  }

 private:
  static Int common(Int a, Int b) { return b ? common(b, a % b) : a; }

  // s += the sum of many rows of so many numbers, a stride apart.
  static void add(const T *x, const T *y, float *s, Int length, Int many, Int stride) {
    Int i = 0;
    for (; i + 4 <= many; i += 4) rows<4>(x + i * stride, kTwo ? y + i * stride : nullptr, s, length, stride);
    for (; i < many; ++i) rows<1>(x + i * stride, kTwo ? y + i * stride : nullptr, s, length, stride);
  }
  template <int kMany>
  static void rows(const T *x, const T *y, float *s, Int length, Int stride) {
    Int c = 0;
    for (; c + kWide <= length; c += kWide) {
      Vector v[kMany];
      for (int k = 0; k < kMany; ++k)
        v[k] = kTwo ? load(x + k * stride + c) * load(y + k * stride + c) : load(x + k * stride + c);
      store(s + c, load(s + c) + (kMany == 4 ? (v[0] + v[kMany / 3]) + (v[kMany / 2] + v[kMany - 1]) : v[0]));
    }
    for (; c < length; ++c)
      for (int k = 0; k < kMany; ++k) {
        const float v = number(x + k * stride + c);
        s[c] += kTwo ? v * number(y + k * stride + c) : v;
      }
  }

  const Job &job_;
  const Int cols_;  // which takes a division
  const T *const end_;
  const Int fold_;
  std::vector<float> lane_;
  std::vector<double> whole_;
};

// Sums of all rows above each grain of an image, by channel: what the gate of a sliding tile sees is a difference of two.
template <class T>
class Above {
 public:
  explicit Above(const Job &job, Int images = 1)
      : job_(job), of_image_((job.grains() + 1) * job.channels), sums_(images * of_image_) {}

  double *at(Int image, Int grain) { return sums_.data() + image * of_image_ + grain * job_.channels; }

  // The sums of grains [from, stop) of an image, each alone, behind their upper ends.
  void each(Sums<false, T> &adder, const T *x, Int image, Int from, Int stop) {
    const Int channels = job_.channels;
    const auto end = [&](Int grain) { return std::min((grain + 1) * job_.grain, job_.height); };
    if (job_.last)
      for (Int k = from; k < stop; ++k) adder.pixels(x, nullptr, k * job_.grain, end(k), at(image, k + 1));
    else
      for (Int c = 0; c < channels; ++c) {
        double *to = at(image, from + 1) + c;
        for (Int k = from; k < stop; ++k, to += channels) adder.planes(x, nullptr, c, k * job_.grain, end(k), to, channels);
      }
  }
  void add(Int image, Int from, Int stop) {
    for (Int k = from; k < stop; ++k)
      for (Int c = 0; c < job_.channels; ++c) at(image, k + 1)[c] += at(image, k)[c];
  }

 private:
  const Job &job_;
  const Int of_image_;
  std::vector<double> sums_;
};

}  // namespace tiledse
