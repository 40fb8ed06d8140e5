// SPDX-License-Identifier: MIT
// A value the peer wrote. It was read once; only `checked` gives it out, so a use without a check does not compile.
#pragma once

namespace mpklink {

template <class T>
class Untrusted {
 public:
  constexpr explicit Untrusted(T value) : value_(value) {}
  // Stores the value in *out when `predicate(value)` holds; false: the peer lied (or broke), the stream must fail.
  template <class Predicate>
  [[nodiscard]] bool checked(Predicate predicate, T* out) const {
    if (!predicate(value_)) return false;
    *out = value_;
    return true;
  }

 private:
  T value_;
};

}  // namespace mpklink
