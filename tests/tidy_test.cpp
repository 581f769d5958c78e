// Goal: the source keeps its shape. The rooms include only what design allows them to, files and
// functions stay short, nothing is left unfinished.
// Method: every file of the tree is read and checked line by line. Each rule is first shown a wrong
// file and must report it. (That each header stands alone is the ctest test header_check.)

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace latchkey::tests {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLinesMax = 600;
constexpr std::size_t kColumnsMax = 100;
constexpr std::size_t kFunctionLinesMax = 70;

// What a room may include besides itself: the link lines of CMakeLists.txt, docs/architecture.md.
const std::map<std::string, std::set<std::string>, std::less<>> kMayInclude = {
    {"base", {}},
    {"crypto", {"base"}},
    {"engine", {"base"}},
    {"extent", {"base", "crypto"}},
    {"keymgr", {"base", "crypto"}},
    {"writeback", {"base", "crypto", "engine", "extent", "keymgr"}},
    {"volume", {"base", "crypto", "engine", "extent", "keymgr", "writeback"}},
    {"mount", {"base", "volume"}},
    {"agent", {"base", "crypto", "keymgr"}},
    {"cli", {"base", "crypto", "engine", "keymgr", "volume", "mount", "agent"}},
    {"tests",
     {"base", "crypto", "engine", "extent", "keymgr", "writeback", "volume", "mount", "agent",
      "cli"}},
    {"bench",
     {"base", "crypto", "engine", "extent", "keymgr", "writeback", "volume", "mount", "agent",
      "cli", "tests"}},
};

// A library that only these rooms may see.
const std::map<std::string, std::set<std::string>, std::less<>> kLibraryRooms = {
    {"nlohmann/", {"cli", "tests", "bench"}},
    {"CLI/", {"cli"}},
    {"liburing", {"engine", "tests"}},
    {"openssl/", {"crypto", "tests", "bench"}},
    {"kcapi", {"crypto", "tests"}},
    {"gtest/", {"tests"}},
    {"benchmark/", {"bench"}},
    {"blkid", {"engine"}},
    {"fuse3/", {"mount", "tests"}},
};

// Threads stop in base/wait.h only, so that a simulator can schedule them (design T2). Tests may
// wait as they like.
constexpr std::array kOwnWaits = {
    "<mutex>",   "<shared_mutex>", "<condition_variable>", "<semaphore>", "<latch>",
    "<barrier>", "sleep_for",      "sleep_until",          "nanosleep",   "usleep("};

struct File {
  std::string path;  // from the root of the tree
  std::string text;
};

std::string room_of(const std::string& path) { return path.substr(0, path.find('/')); }

bool ends_with_any(std::string_view path, std::initializer_list<std::string_view> ends) {
  return std::ranges::any_of(ends, [&](std::string_view end) { return path.ends_with(end); });
}
bool is_cpp(std::string_view path) { return ends_with_any(path, {".h", ".cpp", ".inc"}); }
bool is_source(std::string_view path) {
  return is_cpp(path) || path == "run" ||
         ends_with_any(path, {".py", ".sh", ".cmake", "CMakeLists.txt", "/run"});
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

class Checker {
 public:
  void check(const File& file);
  void check_tree(const std::vector<File>& files);
  const std::vector<std::string>& findings() const { return findings_; }

 private:
  void report(const File& file, std::size_t line, const std::string& what) {
    findings_.push_back(file.path + ":" + std::to_string(line) + ": " + what);
  }
  void check_line(const File& file, std::size_t number, const std::string& line);
  void check_include(const File& file, std::size_t number, const std::string& line);
  void check_functions(const File& file, const std::vector<std::string>& lines, std::size_t indent);

  std::vector<std::string> findings_;
  std::set<std::string> files_with_cli11_;
};

void Checker::check_include(const File& file, std::size_t number, const std::string& line) {
  const std::size_t open = line.find_first_of("<\"");
  if (open == std::string::npos) return report(file, number, "an include that cannot be read");
  const std::size_t close = line.find_first_of(">\"", open + 1);
  const std::string target = line.substr(open + 1, close - open - 1);
  const std::string room = room_of(file.path);

  if (line[open] == '<') {
    for (const auto& [library, rooms] : kLibraryRooms) {
      if (target.starts_with(library) && !rooms.contains(room)) {
        report(file, number, room + " may not include <" + target + ">");
      }
    }
    if (target.starts_with("CLI/")) files_with_cli11_.insert(file.path);
    return;
  }
  const std::string target_room = room_of(target);
  if (!target.contains('/') || !kMayInclude.contains(target_room)) {
    report(file, number, "\"" + target + "\" is not given from the root of the tree");
  } else if (target_room != room && !kMayInclude.at(room).contains(target_room)) {
    report(file, number, room + " may not include " + target);
  }
}

// The words are put together here so that this file does not contain them.
const std::vector<std::string>& unfinished_words() {
  static const std::vector<std::string> words = {
      std::string("TO") + "DO",
      std::string("FIX") + "ME",
      std::string("XX") + "X",
      std::string("HA") + "CK",
      std::string("not imple") + "mented",
      std::string("place") + "holder",
      std::string("stu") + "b:",
  };
  return words;
}

void Checker::check_line(const File& file, std::size_t number, const std::string& line) {
  if (line.ends_with(' ') || line.ends_with('\r')) report(file, number, "space at the end");
  for (const char* folder : {"home", "root", "work"}) {
    if (line.contains(std::string("/") + folder + "/")) {
      report(file, number, "names a folder of somebody's machine");
    }
  }
  if (!is_source(file.path)) return;
  if (line.contains('\t')) report(file, number, "tab");
  const auto columns = std::ranges::count_if(line, [](char c) { return (c & 0xC0) != 0x80; });
  if (static_cast<std::size_t>(columns) > kColumnsMax) {
    report(file, number, std::to_string(columns) + " columns");
  }
  for (const std::string& word : unfinished_words()) {
    // mkdtemp's six letters are not one of them.
    if (line.contains(word) && !line.contains(word + word)) {
      report(file, number, "unfinished: " + word);
    }
  }
  if (is_cpp(file.path) && line.starts_with("#include")) check_include(file, number, line);
  const std::string room = room_of(file.path);
  if (!is_cpp(file.path) || room == "base" || room == "tests") return;
  for (const char* wait : kOwnWaits)
    if (line.contains(wait)) report(file, number, "a wait past base/wait.h: " + std::string(wait));
}

// clang-format puts the end of a function into the column of its beginning, which is all that has
// to be known: 0 for functions and tests, 2 for those written inside a class.
void Checker::check_functions(const File& file, const std::vector<std::string>& lines,
                              std::size_t indent) {
  std::size_t begin = 0;
  bool open = false, has_parameters = false;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::string& line = lines[i];
    const std::size_t column = line.find_first_not_of(' ');
    if (column != indent) {
      if (!open && column != std::string::npos && column > indent) {
        has_parameters = has_parameters || line.contains('(');
        open = line.ends_with('{');
      }
      continue;
    }
    if (line[column] == '}') {
      const std::size_t length = i - begin + 1;
      if (open && has_parameters && length > kFunctionLinesMax) {
        report(file, begin + 1, "function of " + std::to_string(length) + " lines");
      }
      open = false;
    } else {
      const std::string_view text = std::string_view(line).substr(column);
      const bool scope = text.starts_with("namespace") || text.starts_with("class") ||
                         text.starts_with("struct") || text.starts_with("enum");
      begin = i;
      has_parameters = !scope && text.contains('(');
      open = line.ends_with('{');
    }
  }
}

void Checker::check(const File& file) {
  const std::vector<std::string> lines = lines_of(file.text);
  for (std::size_t i = 0; i < lines.size(); ++i) check_line(file, i + 1, lines[i]);
  if (!file.text.empty() && !file.text.ends_with('\n')) report(file, lines.size(), "no newline");
  if (is_source(file.path) && lines.size() > kLinesMax) {
    report(file, 1, std::to_string(lines.size()) + " lines");
  }
  if (is_cpp(file.path)) {
    check_functions(file, lines, 0);
    check_functions(file, lines, 2);
  }
  if (file.path.ends_with(".h") && !file.text.starts_with("#pragma once\n")) {
    report(file, 1, "does not begin with #pragma once");
  }
}

void Checker::check_tree(const std::vector<File>& files) {
  for (const File& file : files) check(file);
  if (files_with_cli11_.size() > 1) {
    for (const std::string& path : files_with_cli11_) {
      findings_.push_back(path + ": CLI11 is slow to compile: one file includes it");
    }
  }
}

std::vector<std::string> findings_in(const std::vector<File>& files) {
  Checker checker;
  checker.check_tree(files);
  return checker.findings();
}

// The folders of the tree and the files beside them; not build/, not .git.
std::vector<File> read_tree(const fs::path& root) {
  std::vector<File> files;
  const auto add = [&](const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream text;
    text << in.rdbuf();
    EXPECT_TRUE(in) << path;
    files.push_back({fs::relative(path, root).generic_string(), text.str()});
  };
  const auto is_text = [](const fs::path& path) {
    return !ends_with_any(path.string(), {".patch", ".bin", ".pyc", ".img"});
  };
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file() && name != ".git") add(entry.path());
    if (!entry.is_directory()) continue;
    if (name != "docs" && name != ".ci" && !kMayInclude.contains(name)) continue;
    for (const auto& inner : fs::recursive_directory_iterator(entry.path())) {
      if (inner.is_regular_file() && inner.file_size() > 0 && is_text(inner.path())) {
        add(inner.path());
      }
    }
  }
  return files;
}

TEST(Tidy, the_tree_has_no_findings) {
  const std::vector<File> files = read_tree(LATCHKEY_SOURCE_DIR);
  EXPECT_GT(files.size(), 30U) << "the tree was not found in " << LATCHKEY_SOURCE_DIR;
  for (const std::string& finding : findings_in(files)) ADD_FAILURE() << finding;
}

TEST(Tidy, a_good_file_has_no_findings) {
  EXPECT_TRUE(findings_in({{"extent/a.h", "#pragma once\n#include \"crypto/ids.h\"\n"},
                           {"cli/main.cpp", "#include <CLI/CLI.hpp>\n"},
                           {"base/a.cpp", "  (void)::nanosleep(&pause, nullptr);\n"},
                           {"tests/a.cpp", "#include <mutex>\n"},
                           {"docs/a.md", std::string(200, 'x') + "\n"}})
                  .empty());
}

TEST(Tidy, each_rule_reports_a_wrong_file) {
  const std::string short_body(kFunctionLinesMax - 2, '\n');
  const std::string long_body(kFunctionLinesMax - 1, '\n');
  const std::vector<File> wrong = {
      {"base/a.cpp", "#include \"crypto/ids.h\"\n"},
      {"engine/a.cpp", "#include \"keymgr/keyring.h\"\n"},
      {"keymgr/a.h", "#pragma once\n#include \"engine/io.h\"\n"},
      {"mount/a.cpp", "#include \"engine/io.h\"\n"},
      {"cli/a.cpp", "#include \"extent/map.h\"\n"},
      {"cli/a.cpp", "#include \"writeback/pipeline.h\"\n"},
      {"volume/a.cpp", "#include \"tests/support/sim.h\"\n"},
      {"tests/a.cpp", "#include \"bench/a.h\"\n"},
      {"base/a.cpp", "#include \"check.h\"\n"},
      {"base/a.cpp", "#include \"../base/check.h\"\n"},
      {"volume/a.cpp", "#include <nlohmann/json.hpp>\n"},
      {"engine/a.cpp", "#include <openssl/evp.h>\n"},
      {"cli/a.cpp", "#include <fuse3/fuse_lowlevel.h>\n"},
      {"engine/a.cpp", "#include <mutex>\n"},
      {"volume/a.h", "#pragma once\n#include <condition_variable>\n"},
      {"cli/a.cpp", "  std::this_thread::sleep_for(pause);\n"},
      {"bench/a.cpp", "  (void)::nanosleep(&pause, nullptr);\n"},
      {"base/a.h", "int a;\n"},
      {"base/a.cpp", "int a; \n"},
      {"base/a.cpp", "\tint a;\n"},
      {"base/a.cpp", "int a;"},
      {"base/a.cpp", "// " + std::string(kColumnsMax, 'x') + "\n"},
      {"tests/a.py", std::string(kLinesMax + 1, '\n')},
      {"base/a.cpp", "// " + unfinished_words().front() + "\n"},
      {"docs/a.md", std::string("/ho") + "me/somebody\n"},
      {"base/a.cpp", "int f() {" + long_body + "\n}\n"},
      {"base/a.cpp", "int f(int a,\n    int b) {" + long_body + "}\n"},
      {"base/a.h", "#pragma once\nclass A {\n public:\n  int f() {" + long_body + "\n  }\n};\n"},
  };
  for (const File& file : wrong) {
    EXPECT_EQ(findings_in({file}).size(), 1U) << file.path << "\n" << file.text;
  }
  EXPECT_TRUE(findings_in({{"base/a.cpp", "int f() {" + short_body + "\n}\n"}}).empty());
  EXPECT_TRUE(findings_in({{"base/a.cpp", "const int a[] = {" + long_body + "\n};\n"}}).empty());
}

TEST(Tidy, cli11_in_two_files_is_reported) {
  EXPECT_EQ(findings_in({{"cli/a.cpp", "#include <CLI/CLI.hpp>\n"},
                         {"cli/b.cpp", "#include <CLI/App.hpp>\n"}})
                .size(),
            2U);
}

}  // namespace
}  // namespace latchkey::tests
