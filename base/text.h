#pragma once
// Text for people: errors, sizes.

#include <string>
#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace latchkey {

// One line without a newline: "checksum does not match (damaged) at device offset 65536 [EIO]".
std::string describe(const Error& error);

// "ENOKEY"; "errno 4095" for a number that has no name.
std::string errno_name(int number);

// Three significant digits, a whole number from 1000 on: "0 B", "1023 B", "1.5 GiB", "128 KiB".
std::string format_bytes(u64 bytes);

// "4096", "128K", "4G", "1MiB": decimal digits and one of K M G T P E (1024 each, either case),
// with or without "iB". Errc::invalid for anything else and for what does not fit 64 bits.
Result<u64> parse_size(std::string_view text);

}  // namespace latchkey
