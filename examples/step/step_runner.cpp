// Runs a step (tiledse's export_step) in C++ by ONNX Runtime's C interface: one file, nothing else.
//
//   c++ -std=c++17 -O2 -I HEADERS step_runner.cpp -o step_runner -L FOLDER -lonnxruntime
//   ./step_runner step.onnx image.npy OUT [state.safetensors] [--until ROW saved.safetensors]
//
// image.npy: float32, N x C x rows x W. Each output goes to OUT.NAME.npy. step.middle.onnx is taken where it lies beside
// the step. A state that was saved, here or in Python or JavaScript, goes on where it was left: the image's rows from
// there on are pushed. With --until it stops before that row of the image and saves its state. The class StepRunner is
// what a program of your own takes; it throws std::runtime_error.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace step {

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

// JSON, as far as the header of a step and of a safetensors file have it.
struct Json {
  using Object = std::map<std::string, Json>;
  using Array = std::vector<Json>;
  std::variant<std::nullptr_t, bool, double, std::string, Array, Object> value = nullptr;

  bool null() const { return std::holds_alternative<std::nullptr_t>(value); }
  bool truth() const { return std::get<bool>(value); }
  double number() const { return std::get<double>(value); }
  int64_t whole() const { return static_cast<int64_t>(number()); }
  const std::string& text() const { return std::get<std::string>(value); }
  const Array& items() const { return std::get<Array>(value); }
  const Json& operator[](const std::string& key) const {
    const auto& object = std::get<Object>(value);
    const auto found = object.find(key);
    if (found == object.end()) fail("no \"" + key + "\" in the header");
    return found->second;
  }
  std::vector<int64_t> shape() const {
    std::vector<int64_t> sides;
    for (const auto& item : items()) sides.push_back(item.whole());
    return sides;
  }
};

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : text_(text) {}
  Json read() {
    const char c = peek();
    if (c == '{') {
      Json::Object object;
      each('}', [&] {
        std::string key = string();
        expect(':');
        object[key] = read();
      });
      return {object};
    }
    if (c == '[') {
      Json::Array array;
      each(']', [&] { array.push_back(read()); });
      return {array};
    }
    if (c == '"') return {string()};
    for (const auto& [word, json] : {std::pair<std::string, Json>{"null", {nullptr}}, {"true", {true}}, {"false", {false}}}) {
      if (text_.compare(at_, word.size(), word) == 0) {
        at_ += word.size();
        return json;
      }
    }
    size_t used = 0;
    const double number = std::stod(text_.substr(at_, 40), &used);
    at_ += used;
    return {number};
  }

 private:
  char peek() {
    while (at_ < text_.size() && std::strchr(" \n\r\t", text_[at_])) ++at_;
    if (at_ >= text_.size()) fail("a header is cut off");
    return text_[at_];
  }
  void expect(char c) {
    if (peek() != c) fail(std::string("a header is damaged: expected ") + c);
    ++at_;
  }
  template <typename Item>
  void each(char end, Item item) {
    ++at_;
    if (peek() == end) {
      ++at_;
      return;
    }
    for (;;) {
      item();
      if (peek() == end) break;
      expect(',');
    }
    ++at_;
  }
  std::string string() {
    expect('"');
    std::string made;
    for (; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        made += text_[at_];
        continue;
      }
      const char c = text_.at(++at_);
      if (c == 'u') {  // as UTF-8; names beyond the first plane are not put together
        const int code = std::stoi(text_.substr(at_ + 1, 4), nullptr, 16);
        at_ += 4;
        if (code < 0x80) {
          made += static_cast<char>(code);
        } else if (code < 0x800) {
          made += {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
        } else {
          made += {static_cast<char>(0xE0 | code >> 12), static_cast<char>(0x80 | (code >> 6 & 63)),
                   static_cast<char>(0x80 | (code & 63))};
        }
      } else {
        const char* from = "nrtbf";
        const char* found = std::strchr(from, c);
        made += found ? "\n\r\t\b\f"[found - from] : c;
      }
    }
    expect('"');
    return made;
  }
  const std::string& text_;
  size_t at_ = 0;
};

inline std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The entry of an ONNX file's metadata that says what the step is. The weights are passed over.
inline Json header_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read " + path);
  const auto number = [](std::istream& from) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const int byte = from.get();
      if (byte == EOF) fail("no ONNX file, or it was cut off");
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
    fail("no ONNX file");
  };
  const auto bytes = [&](std::istream& from) {
    std::string made(number(from), '\0');
    if (!from.read(made.data(), static_cast<std::streamsize>(made.size()))) fail("the ONNX file was cut off");
    return made;
  };
  while (file.peek() != EOF) {
    const uint64_t tag = number(file);
    if (tag % 8 == 0) {
      number(file);
    } else if (tag % 8 != 2) {
      fail(path + " is no ONNX file");
    } else if (tag >> 3 != 14) {
      file.seekg(static_cast<std::streamoff>(number(file)), std::ios::cur);
    } else {
      const std::string entry = bytes(file);
      std::string pair[3];
      size_t at = 0;
      while (at < entry.size()) {  // both are short texts: a tag, a length, the text
        const int field = entry[at++] >> 3;
        uint64_t length = 0;
        for (int shift = 0; at < entry.size(); shift += 7) {
          const auto byte = static_cast<unsigned char>(entry[at++]);
          length |= static_cast<uint64_t>(byte & 127) << shift;
          if (byte < 128) break;
        }
        if (field == 1 || field == 2) pair[field] = entry.substr(at, length);
        at += length;
      }
      if (pair[1] == "tiledse.step") {
        Json header = JsonReader(pair[2]).read();
        if (header["format"].text() != "tiledse.step/2") fail("expected tiledse.step/2, got " + header["format"].text());
        return header;
      }
    }
  }
  fail(path + " is no step; make one with: tiledse stream MODEL --tile T --rows R --export " + path);
}

inline size_t count(const std::vector<int64_t>& shape) {
  size_t product = 1;
  for (const int64_t side : shape) product *= static_cast<size_t>(side);
  return product;
}

// Numbers and their shape; no numbers where there are none.
struct Array {
  std::vector<float> data;
  std::vector<int64_t> shape;
};

// Parts one after the other along an axis.
inline Array joined(const std::vector<Array>& parts, int64_t axis) {
  if (parts.empty()) return {};
  Array whole{{}, parts[0].shape};
  whole.shape[axis] = 0;
  for (const auto& part : parts) whole.shape[axis] += part.shape[axis];
  size_t outer = 1, inner = 1;
  for (int64_t i = 0; i < static_cast<int64_t>(whole.shape.size()); ++i) {
    (i < axis ? outer : inner) *= i == axis ? 1 : static_cast<size_t>(whole.shape[i]);
  }
  for (size_t i = 0; i < outer; ++i) {
    for (const auto& part : parts) {
      const size_t size = static_cast<size_t>(part.shape[axis]) * inner;
      whole.data.insert(whole.data.end(), part.data.begin() + i * size, part.data.begin() + (i + 1) * size);
    }
  }
  return whole;
}

// SHA-256 (FIPS 180-4, section 6.2) of bytes, in hexadecimal.
class Sha256 {
 public:
  void add(const void* data, size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    total_ += size;
    while (size > 0) {
      const size_t now = std::min(size, block_.size() - held_);
      std::copy_n(bytes, now, block_.begin() + static_cast<int64_t>(held_));
      held_ += now;
      bytes += now;
      size -= now;
      if (held_ == block_.size()) mix();
    }
  }
  std::string hex() {
    const uint64_t bits = total_ * 8;
    const unsigned char one = 0x80, none = 0;
    add(&one, 1);
    while (held_ != 56) add(&none, 1);
    for (int i = 0; i < 8; ++i) block_[56 + static_cast<size_t>(i)] = static_cast<unsigned char>(bits >> (56 - 8 * i));
    mix();
    std::string made;
    for (const uint32_t word : hash_) {
      for (int shift = 28; shift >= 0; shift -= 4) made += "0123456789abcdef"[word >> shift & 15];
    }
    return made;
  }

 private:
  static uint32_t turned(uint32_t x, int n) { return x >> n | x << (32 - n); }
  // The first 32 bits of the fractional parts of roots of the first primes: square roots, and cube roots.
  static std::vector<uint32_t> roots(size_t count, double power) {
    std::vector<uint32_t> made;
    for (int n = 2; made.size() < count; ++n) {
      bool prime = true;
      for (int d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
      const double root = std::pow(n, power);
      if (prime) made.push_back(static_cast<uint32_t>((root - std::floor(root)) * 4294967296.0));
    }
    return made;
  }
  void mix() {
    static const std::vector<uint32_t> constants = roots(64, 1.0 / 3);
    std::array<uint32_t, 64> w{};
    for (size_t i = 0; i < 16; ++i) {
      for (size_t j = 0; j < 4; ++j) w[i] = w[i] << 8 | block_[4 * i + j];
    }
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    std::vector<uint32_t> h = hash_;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t one = h[7] + (turned(h[4], 6) ^ turned(h[4], 11) ^ turned(h[4], 25)) +
                           ((h[4] & h[5]) ^ (~h[4] & h[6])) + constants[i] + w[i];
      const uint32_t two = (turned(h[0], 2) ^ turned(h[0], 13) ^ turned(h[0], 22)) +
                           ((h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2]));
      h = {one + two, h[0], h[1], h[2], h[3] + one, h[4], h[5], h[6]};
    }
    for (size_t i = 0; i < 8; ++i) hash_[i] += h[i];
    held_ = 0;
  }
  std::array<unsigned char, 64> block_{};
  size_t held_ = 0;
  uint64_t total_ = 0;
  std::vector<uint32_t> hash_ = roots(8, 0.5);
};

// Of all that a state holds; arrays by name, in the order of their names.
inline std::string digest_of(const std::string& step, int64_t seen, const std::map<std::string, Array>& arrays) {
  Sha256 hash;
  const std::string head = step + " " + std::to_string(seen);
  hash.add(head.data(), head.size());
  for (const auto& [name, array] : arrays) {
    hash.add(name.data(), name.size());
    hash.add(array.data.data(), array.data.size() * sizeof(float));
  }
  return hash.hex();
}

// A text as JSON has it.
inline std::string quoted(const std::string& text) {
  std::string made = "\"";
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) fail("a name with a control character");
    if (c == '"' || c == '\\') made += '\\';
    made += c;
  }
  return made + '"';
}

// A file of safetensors: a length, a header in JSON, the numbers. Written beside its place, and then moved there.
inline void write_safetensors(const std::string& path, const std::map<std::string, Array>& arrays, const std::string& key,
                              const std::string& note) {
  std::string text = "{\"__metadata__\":{" + quoted(key) + ":" + quoted(note) + "}";
  size_t at = 0;
  for (const auto& [name, array] : arrays) {
    text += "," + quoted(name) + ":{\"dtype\":\"F32\",\"shape\":[";
    for (size_t i = 0; i < array.shape.size(); ++i) text += (i ? "," : "") + std::to_string(array.shape[i]);
    const size_t size = array.data.size() * sizeof(float);
    text += "],\"data_offsets\":[" + std::to_string(at) + "," + std::to_string(at + size) + "]}";
    at += size;
  }
  text += "}";
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  const std::string part = path + ".part";
  {
    std::ofstream file(part, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), 8);
    file << text;
    for (const auto& [name, array] : arrays) {
      file.write(reinterpret_cast<const char*>(array.data.data()), static_cast<std::streamsize>(array.data.size() * 4));
    }
    file.close();
    if (!file) {
      std::remove(part.c_str());
      fail("cannot write " + path);
    }
  }
  if (std::rename(part.c_str(), path.c_str()) != 0) fail("cannot write " + path);
}

constexpr int64_t kUnknown = 1 << 24;  // rows of an image that has not ended

class StepRunner {
 public:
  using Rows = std::map<std::string, Array>;

  // height: rows of an image, or -1 where it shows when it ends; threads: 0 leaves it to ONNX Runtime.
  explicit StepRunner(const std::string& path, int64_t height = -1, int threads = 0)
      : api_(OrtGetApiBase()->GetApi(ORT_API_VERSION)), header_(header_of(path)) {
    if (api_ == nullptr) fail("this ONNX Runtime is older than its headers");
    for (const char* name : {"images", "channels", "window", "width", "rows", "begin", "latency", "middle_from"}) {
      n_[name] = header_[name].whole();
    }
    height_ = header_["height"].null() ? height : header_["height"].whole();
    if (height_ >= 0) check_height(height_);
    for (const auto& head : header_["heads"].items()) {
      heads_.push_back({head["name"].text(), head["row_dim"].null() ? -1 : head["row_dim"].whole()});
    }
    for (const auto& state : header_["states"].items()) states_.push_back(state["name"].text());
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "step", &env_));
    check(api_->CreateSessionOptions(&options_));
    check(api_->SetIntraOpNumThreads(options_, threads));
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    check(api_->CreateSession(env_, path.c_str(), options_, &step_));
    const std::string middle = path.substr(0, path.rfind('.')) + ".middle.onnx";
    if (std::ifstream(middle) && header_of(middle)["identity"].text() == header_["identity"].text()) {
      check(api_->CreateSession(env_, middle.c_str(), options_, &middle_));
    }
    begin();
  }
  StepRunner(const StepRunner&) = delete;
  StepRunner& operator=(const StepRunner&) = delete;
  ~StepRunner() {
    release(state_);
    if (middle_) api_->ReleaseSession(middle_);
    if (step_) api_->ReleaseSession(step_);
    if (memory_) api_->ReleaseMemoryInfo(memory_);
    if (options_) api_->ReleaseSessionOptions(options_);
    if (env_) api_->ReleaseEnv(env_);
  }

  const Json& header() const { return header_; }
  int64_t seen() const { return seen_; }

  // Take the next rows of the image, N x C x rows x W. Gives, by output, its new rows; no data where there are none.
  Rows push(const float* data, int64_t rows) {
    const int64_t window = n_["window"], width = n_["width"], planes = n_["images"] * n_["channels"];
    const int64_t most = height_ < 0 ? kUnknown - 1 : height_;
    if (rows < 1 || seen_ + rows > most) {
      fail(std::to_string(seen_ + rows) + " rows came, the image has " + std::to_string(most) + " at the most");
    }
    for (int64_t i = 0; i < planes * rows * width; ++i) {
      if (!std::isfinite(data[i])) fail("a value is not finite");
    }
    Parts gathered(heads_.size());
    for (int64_t top = 0; top < rows;) {
      const int64_t held = seen_ - next_;  // below 0 where no step reads the next rows
      const int64_t now = std::min(window - held, rows - top), skip = std::max<int64_t>(0, -held);
      for (int64_t plane = 0; plane < planes && now > skip; ++plane) {
        std::copy_n(data + (plane * rows + top + skip) * width, (now - skip) * width,
                    window_.begin() + (plane * window + held + skip) * width);
      }
      top += now;
      seen_ += now;
      if (held + now == window) run(gathered, false);
    }
    if (seen_ == height_) drain(gathered);
    return joined_rows(gathered);
  }

  // End the image, and give the rows that waited for that. It is then ready for the next image.
  Rows finish() {
    if (seen_ == 0) fail("the image ended before its first row");
    if (height_ >= 0 && seen_ != height_) {
      fail("the image ended after " + std::to_string(seen_) + " rows, expected " + std::to_string(height_));
    }
    check_height(seen_);
    Parts gathered(heads_.size());
    if (!ended_) drain(gathered);
    begin();
    return joined_rows(gathered);
  }

  // Write the state between two pushes (safetensors); load goes on from it, in any language.
  void save(const std::string& path) const {
    std::map<std::string, Array> arrays;
    for (size_t i = 0; i < states_.size(); ++i) {
      const auto shape = header_["states"].items()[i]["shape"].shape();
      void* data = nullptr;
      check(api_->GetTensorMutableData(state_[i], &data));
      const auto* from = static_cast<const float*>(data);
      arrays[states_[i]] = {{from, from + count(shape)}, shape};
    }
    const int64_t window = n_.at("window"), width = n_.at("width"), planes = n_.at("images") * n_.at("channels");
    const int64_t low = std::max<int64_t>(0, -next_), there = ended_ ? 0 : std::max<int64_t>(0, seen_ - next_ - low);
    Array waiting{{}, {n_.at("images"), n_.at("channels"), there, width}};
    for (int64_t plane = 0; plane < planes; ++plane) {
      const auto from = window_.begin() + (plane * window + low) * width;
      waiting.data.insert(waiting.data.end(), from, from + there * width);
    }
    arrays["waiting"] = waiting;
    const std::string& step = header_["identity"].text();
    std::string note = "{\"format\":\"tiledse.step-state/2\",\"step\":" + quoted(step) + ",\"seen\":" + std::to_string(seen_) +
                       ",\"height\":" + (height_ < 0 ? "null" : std::to_string(height_)) + ",\"given\":[";
    for (size_t i = 0; i < given_.size(); ++i) note += std::string(i ? "," : "") + (given_[i] ? "true" : "false");
    note += "],\"sha256\":" + quoted(digest_of(step, seen_, arrays)) + "}";
    write_safetensors(path, arrays, "tiledse.step-state", note);
  }

  // Go on from a state that save wrote, of an image of the same height.
  void load(const std::string& path) {
    const std::string bytes = bytes_of(path);
    uint64_t length = 0;
    if (bytes.size() < 8) fail(path + " is no state of a step");
    std::memcpy(&length, bytes.data(), 8);
    if (length > bytes.size() - 8) fail(path + " was cut off");
    const std::string text = bytes.substr(8, length);
    const Json tensors = JsonReader(text).read();
    const std::string note = tensors["__metadata__"]["tiledse.step-state"].text();
    const Json record = JsonReader(note).read();
    if (record["format"].text() != "tiledse.step-state/2") fail(path + " is no state of a step");
    if (record["step"].text() != header_["identity"].text()) fail("the state is of another step");
    const int64_t tall = record["height"].null() ? -1 : record["height"].whole();
    if (tall != height_) fail("the state is of an image of another height");
    const auto read = [&](const std::string& name) {
      const Json& tensor = tensors[name];
      if (tensor["dtype"].text() != "F32") fail(name + " is not of float32");
      Array made{{}, tensor["shape"].shape()};
      const auto offsets = tensor["data_offsets"].shape();
      made.data.resize(count(made.shape));
      if (8 + length + static_cast<uint64_t>(offsets[1]) > bytes.size() ||
          made.data.size() * 4 != static_cast<size_t>(offsets[1] - offsets[0])) {
        fail(path + " was cut off");
      }
      std::memcpy(made.data.data(), bytes.data() + 8 + length + offsets[0], made.data.size() * 4);
      return made;
    };
    std::map<std::string, Array> arrays;
    for (const auto& state : header_["states"].items()) {
      const std::string& name = state["name"].text();
      arrays[name] = read(name);
      if (arrays[name].shape != state["shape"].shape()) fail(name + " has another shape");
    }
    arrays["waiting"] = read("waiting");
    if (digest_of(record["step"].text(), record["seen"].whole(), arrays) != record["sha256"].text()) {
      fail(path + " was changed after it was written");
    }
    const Array waiting = arrays["waiting"];
    begin();
    for (size_t i = 0; i < states_.size(); ++i) fill(state_[i], arrays[states_[i]].data);
    seen_ = record["seen"].whole();
    for (size_t i = 0; i < heads_.size(); ++i) given_[i] = record["given"].items().at(i).truth();
    ended_ = seen_ == height_;
    const int64_t window = n_["window"], width = n_["width"], there = waiting.shape.at(2);
    const int64_t over = seen_ - window - n_["begin"];
    next_ = n_["begin"] + (over < 0 ? 0 : over / n_["rows"] + 1) * n_["rows"];
    for (int64_t plane = 0; plane < n_["images"] * n_["channels"] && there > 0; ++plane) {
      std::copy_n(waiting.data.begin() + plane * there * width, there * width,
                  window_.begin() + (plane * window + seen_ - next_ - there) * width);
    }
  }

 private:
  using Parts = std::vector<std::vector<Array>>;
  struct Head {
    std::string name;
    int64_t row_dim;
  };

  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    fail(message);
  }

  void release(std::vector<OrtValue*>& values) const {
    for (OrtValue* value : values) api_->ReleaseValue(value);
    values.clear();
  }

  void begin() {
    window_.assign(static_cast<size_t>(n_["images"] * n_["channels"] * n_["window"] * n_["width"]), 0.0F);
    next_ = n_["begin"];
    seen_ = 0;
    ended_ = false;
    given_.assign(heads_.size(), false);
    release(state_);
    OrtAllocator* allocator = nullptr;
    check(api_->GetAllocatorWithDefaultOptions(&allocator));
    for (const auto& state : header_["states"].items()) {
      const auto shape = state["shape"].shape();
      OrtValue* value = nullptr;
      check(api_->CreateTensorAsOrtValue(allocator, shape.data(), shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
      state_.push_back(value);
      fill(value, std::vector<float>(count(shape), static_cast<float>(state["start"].number())));
    }
  }

  void fill(OrtValue* value, const std::vector<float>& data) const {
    void* to = nullptr;
    check(api_->GetTensorMutableData(value, &to));
    std::memcpy(to, data.data(), data.size() * sizeof(float));
  }

  OrtValue* tensor(void* data, size_t size, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) const {
    OrtValue* value = nullptr;
    check(api_->CreateTensorWithDataAsOrtValue(memory_, data, size, shape.data(), shape.size(), type, &value));
    return value;
  }

  // One step; whether rows are still to come.
  bool run(Parts& gathered, bool ended) {
    const int64_t window = n_["window"], width = n_["width"], planes = n_["images"] * n_["channels"];
    const bool middle = middle_ && !ended && next_ >= n_["middle_from"] + n_["begin"];
    int64_t first = next_, height = ended ? seen_ : height_ < 0 ? kUnknown : height_;
    std::vector<OrtValue*> own = {
        tensor(window_.data(), window_.size() * sizeof(float), {n_["images"], n_["channels"], window, width},
               ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
        tensor(&first, sizeof first, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
        tensor(&height, sizeof height, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)};
    std::vector<std::string> names = {"image", "first", "height"}, wanted;
    for (const auto& state : states_) names.push_back("state." + state);
    for (const auto& head : heads_) wanted.push_back(head.name);
    wanted.emplace_back("rows");
    for (const auto& state : states_) wanted.push_back("next." + state);
    std::vector<const OrtValue*> given(own.begin(), own.end());
    given.insert(given.end(), state_.begin(), state_.end());
    std::vector<OrtValue*> made(wanted.size(), nullptr);
    const auto pointers = [](const std::vector<std::string>& texts) {
      std::vector<const char*> found;
      for (const auto& text : texts) found.push_back(text.c_str());
      return found;
    };
    const auto in = pointers(names), out = pointers(wanted);
    OrtStatus* status = api_->Run(middle ? middle_ : step_, nullptr, in.data(), given.data(), given.size(), out.data(),
                                  out.size(), made.data());
    release(own);
    check(status);
    release(state_);
    state_.assign(made.begin() + static_cast<int64_t>(heads_.size()) + 1, made.end());
    made.resize(heads_.size() + 1);
    next_ += n_["rows"];
    // What the next step is given once more.
    const int64_t moved = std::min(n_["rows"], window) * width;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const auto at = window_.begin() + plane * window * width;
      std::copy(at + moved, at + window * width, at);
    }
    void* data = nullptr;
    check(api_->GetTensorMutableData(made.back(), &data));
    const auto* table = static_cast<const int64_t*>(data);
    bool more = false;
    for (size_t i = 0; i < heads_.size(); ++i) {
      more = more || table[3 * i + 2] > 0;
      if (table[3 * i + 1] > table[3 * i] && !given_[i]) {
        if (heads_[i].row_dim < 0) given_[i] = true;
        gathered[i].push_back(cut(made[i], heads_[i].row_dim, table[3 * i], table[3 * i + 1]));
      }
    }
    release(made);
    return more;
  }

  // Rows low to high of an output along an axis; all of it where there is none.
  Array cut(OrtValue* value, int64_t axis, int64_t low, int64_t high) const {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api_->GetTensorTypeAndShape(value, &info));
    size_t rank = 0;
    check(api_->GetDimensionsCount(info, &rank));
    std::vector<int64_t> shape(rank);
    check(api_->GetDimensions(info, shape.data(), rank));
    api_->ReleaseTensorTypeAndShapeInfo(info);
    void* data = nullptr;
    check(api_->GetTensorMutableData(value, &data));
    const auto* from = static_cast<const float*>(data);
    if (axis < 0) return {{from, from + count(shape)}, shape};
    size_t outer = 1, inner = 1;
    for (size_t i = 0; i < rank; ++i) {
      if (static_cast<int64_t>(i) < axis) outer *= static_cast<size_t>(shape[i]);
      if (static_cast<int64_t>(i) > axis) inner *= static_cast<size_t>(shape[i]);
    }
    Array made;
    for (size_t i = 0; i < outer; ++i) {
      const float* top = from + (i * static_cast<size_t>(shape[axis]) + static_cast<size_t>(low)) * inner;
      made.data.insert(made.data.end(), top, top + static_cast<size_t>(high - low) * inner);
    }
    shape[axis] = high - low;
    made.shape = shape;
    return made;
  }

  // Steps without new rows of the image, until all outputs have all of theirs.
  void drain(Parts& gathered) {
    const int64_t window = n_["window"], width = n_["width"], planes = n_["images"] * n_["channels"], rows = n_["rows"];
    const int64_t most = 2 + (n_["latency"] + rows - 1) / rows + n_["middle_from"] / rows;
    for (int64_t number = 0; number < most; ++number) {
      const int64_t from = std::clamp<int64_t>(seen_ - next_, 0, window);
      for (int64_t plane = 0; plane < planes; ++plane) {
        std::fill(window_.begin() + (plane * window + from) * width, window_.begin() + (plane + 1) * window * width, 0.0F);
      }
      if (!run(gathered, true)) {
        ended_ = true;
        return;
      }
    }
    fail("the step does not end; its file was changed, export it again");
  }

  Rows joined_rows(const Parts& gathered) const {
    Rows found;
    for (size_t i = 0; i < heads_.size(); ++i) {
      found[heads_[i].name] = joined(gathered[i], std::max<int64_t>(0, heads_[i].row_dim));
    }
    return found;
  }

  void check_height(int64_t height) const {
    if (height < header_["least"].whole() || height >= kUnknown) {
      fail("an image of " + std::to_string(height) + " rows cannot go through this step");
    }
    if (height % header_["multiple"].whole()) {
      fail("this network takes heights in multiples of " + std::to_string(header_["multiple"].whole()));
    }
    if (!header_["height"].null() && header_["height"].whole() != height) {
      fail("the step was made for images of " + std::to_string(header_["height"].whole()) + " rows");
    }
  }

  const OrtApi* api_;
  Json header_;
  std::map<std::string, int64_t> n_;  // whole numbers of the header
  std::vector<Head> heads_;
  std::vector<std::string> states_;
  OrtEnv* env_ = nullptr;
  OrtSessionOptions* options_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  OrtSession *step_ = nullptr, *middle_ = nullptr;
  std::vector<OrtValue*> state_;
  std::vector<float> window_;
  std::vector<bool> given_;
  int64_t height_ = -1, next_ = 0, seen_ = 0;
  bool ended_ = false;
};

// A file of numpy: float32, in the order of C.
inline Array read_npy(const std::string& path) {
  const std::string bytes = bytes_of(path);
  if (bytes.size() < 10 || bytes.compare(0, 6, "\x93NUMPY") != 0) fail(path + " is no .npy file");
  const size_t wide = bytes[6] == 1 ? 2 : 4;
  size_t length = 0;
  std::memcpy(&length, bytes.data() + 8, wide);
  const std::string text = bytes.substr(8 + wide, length);
  if (text.find("'<f4'") == std::string::npos || text.find("False") == std::string::npos) {
    fail(path + ": expected float32 in the order of C");
  }
  Array made;
  for (size_t at = text.find('(') + 1; at < text.size() && text[at] != ')';) {
    size_t used = 0;
    made.shape.push_back(std::stoll(text.substr(at), &used));
    at += used;
    while (text[at] == ',' || text[at] == ' ') ++at;
  }
  made.data.resize(count(made.shape));
  if (bytes.size() != 8 + wide + length + 4 * made.data.size()) fail(path + " was cut off");
  std::memcpy(made.data.data(), bytes.data() + 8 + wide + length, 4 * made.data.size());
  return made;
}

inline void write_npy(const std::string& path, const Array& array) {
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (const int64_t side : array.shape) text += std::to_string(side) + ", ";
  text += "), }";
  text.resize((text.size() + 10 + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  text += '\n';
  std::ofstream file(path, std::ios::binary);
  const auto length = static_cast<uint16_t>(text.size());
  file.write("\x93NUMPY\x01\x00", 8);
  file.write(reinterpret_cast<const char*>(&length), 2);
  file << text;
  file.write(reinterpret_cast<const char*>(array.data.data()), static_cast<std::streamsize>(4 * array.data.size()));
  if (!file) fail("cannot write " + path);
}

}  // namespace step

#ifndef STEP_RUNNER_NO_MAIN
int main(int argc, char** argv) try {
  std::vector<std::string> given(argv + 1, argv + argc);
  int64_t until = -1;
  std::string saved;
  if (given.size() >= 6 && given[given.size() - 3] == "--until") {
    char* end = nullptr;
    until = std::strtoll(given[given.size() - 2].c_str(), &end, 10);
    if (*end != 0 || until < 1) step::fail("--until: expected a row from 1 on, got " + given[given.size() - 2]);
    saved = given.back();
    given.resize(given.size() - 3);
  }
  if (given.size() != 3 && given.size() != 4) {
    step::fail("usage: step_runner STEP.onnx IMAGE.npy OUT [STATE.safetensors] [--until ROW SAVED.safetensors]");
  }
  const step::Array image = step::read_npy(given[1]);
  if (image.shape.size() != 4) step::fail("expected an image of N x C x rows x W");
  const int64_t height = image.shape[2], planes = image.shape[0] * image.shape[1], width = image.shape[3];
  step::StepRunner runner(given[0], height, 1);
  const step::Json& header = runner.header();
  if (image.shape[0] != header["images"].whole() || image.shape[1] != header["channels"].whole() ||
      width != header["width"].whole()) {
    step::fail("the step takes images of other channels, or another width");
  }
  if (given.size() == 4) runner.load(given[3]);
  if (until > height || (until >= 0 && until < runner.seen())) {
    step::fail("--until: expected a row from " + std::to_string(runner.seen()) + " to " + std::to_string(height) + ", got " +
               std::to_string(until));
  }
  std::map<std::string, std::vector<step::Array>> gathered;
  const auto keep = [&](const step::StepRunner::Rows& rows) {
    for (const auto& [name, part] : rows) {
      if (!part.data.empty()) gathered[name].push_back(part);
    }
  };
  const int64_t stop = until < 0 ? height : until;
  while (runner.seen() < stop) {
    const int64_t top = runner.seen(), rows = std::min<int64_t>(header["rows"].whole(), stop - top);
    std::vector<float> part;
    for (int64_t plane = 0; plane < planes; ++plane) {
      const auto from = image.data.begin() + (plane * height + top) * width;
      part.insert(part.end(), from, from + rows * width);
    }
    keep(runner.push(part.data(), rows));
  }
  if (until >= 0) {
    runner.save(saved);
  } else {
    keep(runner.finish());
  }
  for (const auto& head : header["heads"].items()) {
    const int64_t axis = head["row_dim"].null() ? 0 : head["row_dim"].whole();
    const std::string name = head["name"].text();
    if (!gathered[name].empty()) {  // all of it may have been given before the state was saved
      step::write_npy(given[2] + "." + name + ".npy", step::joined(gathered[name], axis));
    }
  }
  return 0;
} catch (const std::exception& error) {
  std::cerr << "step_runner: " << error.what() << '\n';
  return 2;
}
#endif
