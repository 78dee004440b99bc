// The arguments of one kernel launch, checked against what the kernel was compiled for.
#pragma once

#include <cstdint>
#include <cstring>

namespace toprl {

class Arguments {
public:
    void add(const void* pointer) { add('p', reinterpret_cast<std::uint64_t>(pointer)); }
    void add(float number) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, &number, sizeof bits);
        add('f', bits);
    }
    void add(std::int32_t number) { add('i', std::uint32_t(number)); }
    void add(std::int64_t number) { add('l', std::uint64_t(number)); }

    // Strides of batch and head, then of the rows.
    void add_strides(const std::int64_t* strides) {
        add(strides[0]);
        add(strides[1]);
        add(std::int32_t(strides[2]));
    }

    // Whether they are those of `letters`, with `scratch` null pointers behind them.
    bool fit(const char* letters, int scratch) {
        letters_[count_] = '\0';
        if (std::strcmp(letters, letters_) != 0 || count_ + scratch > kMost) return false;
        for (int i = 0; i < scratch; ++i) add(static_cast<const void*>(nullptr));
        return true;
    }

    // Where each is, as the driver wants them; valid as long as this object is neither changed nor moved.
    void** addresses() {
        for (int i = 0; i < count_; ++i) addresses_[i] = &values_[i];
        return addresses_;
    }

private:
    static constexpr int kMost = 48;

    void add(char letter, std::uint64_t bits) {
        if (count_ == kMost) return;  // `fit` will say no
        letters_[count_] = letter;
        values_[count_] = bits;  // little-endian: also the place of the smaller kinds
        ++count_;
    }

    int count_ = 0;
    char letters_[kMost + 1] = {};
    std::uint64_t values_[kMost] = {};
    void* addresses_[kMost] = {};
};

}  // namespace toprl
