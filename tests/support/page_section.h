#pragma once
// The part of a page of docs/ that a test prints: what stands between two marks of it.

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace latchkey::tests {

// It fails where a mark is missing.
inline std::string page_section(const std::string& page, std::string_view begin,
                                std::string_view end) {
  std::ifstream in(page);
  std::stringstream whole;
  whole << in.rdbuf();
  const std::string text = whole.str();
  const std::size_t mark = text.find(begin);
  const std::size_t from = mark + begin.size();
  const std::size_t to = mark == std::string::npos ? mark : text.find(end, from);
  if (to == std::string::npos) {
    ADD_FAILURE() << page << " lacks its marks " << begin << " and " << end;
    return {};
  }
  return text.substr(from, to - from);
}

}  // namespace latchkey::tests
