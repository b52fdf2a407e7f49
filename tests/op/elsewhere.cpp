// The operator on the numbers that come from standard input, forward and backward, to standard output: for a processor
// that has no Python and no torch here. tests/op/test_elsewhere.py writes and reads them.

#include <cstdio>
#include <vector>

#include "../../src/tiledse/op/cpp/squeeze_excite.cpp"

template <class T>
std::vector<T> taken(Int n) {
  std::vector<T> values(n);
  if (Int(fread(values.data(), sizeof(T), n, stdin)) != n) exit(3);
  return values;
}

template <class T>
void give(const std::vector<T> &values) {
  fwrite(values.data(), sizeof(T), values.size(), stdout);
}

int main() {
  const std::vector<Int> numbers = taken<Int>(16), many = taken<Int>(1), bounds = taken<Int>(many[0]);
  Job job;
  std::memcpy(&job, numbers.data(), sizeof job);
  const Int bytes = job.images * job.image() * (job.type ? 2 : 4), tiles = job.tiles();
  const std::vector<char> x = taken<char>(bytes), grad = taken<char>(bytes);
  const std::vector<float> w1 = taken<float>(job.reduced * job.channels), b1 = taken<float>(job.reduced);
  const std::vector<float> w2 = taken<float>(job.reduced * job.channels), b2 = taken<float>(job.channels);
  std::vector<char> y(bytes), dx(bytes);
  std::vector<float> z(tiles * job.channels), hidden(tiles * job.reduced), gates(tiles * job.channels);
  std::vector<float> to_a1(tiles * job.reduced), to_a2(tiles * job.channels);
  const Int *ends = bounds.empty() ? nullptr : bounds.data();
  if (tiledse_forward(x.data(), y.data(), w1.data(), b1.data(), w2.data(), b2.data(), z.data(), hidden.data(),
                      gates.data(), ends, numbers.data()))
    return 1;
  if (tiledse_backward(x.data(), grad.data(), dx.data(), w1.data(), w2.data(), hidden.data(), gates.data(),
                       to_a1.data(), to_a2.data(), ends, numbers.data()))
    return 1;
  give(y), give(dx), give(z), give(hidden), give(gates), give(to_a1), give(to_a2);
}
