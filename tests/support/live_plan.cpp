#include "tests/support/live_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>

#include "base/check.h"
#include "tests/support/keys.h"
#include "tests/support/random.h"

namespace latchkey::tests {
namespace {

// The arguments of a verb in the order of its text: a user, a key, a slot, a path, another path,
// flags, an offset, a size, a fill, a directory.
struct Form {
  LiveVerb verb;
  std::string_view name;
  std::string_view arguments;
};
constexpr std::array<Form, 19> kForms = {{
    {LiveVerb::add, "add", "uk"},
    {LiveVerb::remove, "remove", "uk"},
    {LiveVerb::remove_all, "remove_all", "uk"},
    {LiveVerb::key_status, "status", "uk"},
    {LiveVerb::open, "open", "uspf"},
    {LiveVerb::read, "read", "uson"},
    {LiveVerb::write, "write", "usonb"},
    {LiveVerb::truncate, "truncate", "usn"},
    {LiveVerb::fsync, "fsync", "us"},
    {LiveVerb::close, "close", "us"},
    {LiveVerb::unlink, "unlink", "up"},
    {LiveVerb::rename, "rename", "upt"},
    {LiveVerb::rename_new, "rename_new", "upt"},
    {LiveVerb::exchange, "exchange", "upt"},
    {LiveVerb::link, "link", "upt"},
    {LiveVerb::stat, "stat", "up"},
    {LiveVerb::list, "list", "ud"},
    {LiveVerb::open_directory, "open_directory", "usd"},
    {LiveVerb::list_open, "list_open", "us"},
}};
constexpr std::array<std::string_view, 4> kUsers = {"root", "A", "B", "C"};

std::string text_of(const volume::OpenFlags& flags) {
  std::string text;
  const auto say = [&](bool set, char letter) {
    if (set) text += letter;
  };
  say(flags.read, 'r');
  say(flags.write, 'w');
  say(flags.append, 'a');
  say(flags.create, 'c');
  say(flags.exclusive, 'x');
  say(flags.truncate, 't');
  return text;
}

bool read_flags(std::string_view word, volume::OpenFlags& flags) {
  flags = {.read = false};
  for (const char letter : word) {
    if (letter == 'r')
      flags.read = true;
    else if (letter == 'w')
      flags.write = true;
    else if (letter == 'a')
      flags.append = true;
    else if (letter == 'c')
      flags.create = true;
    else if (letter == 'x')
      flags.exclusive = true;
    else if (letter == 't')
      flags.truncate = true;
    else
      return false;
  }
  return flags.read || flags.write;
}

template <class T>
bool read_number(std::string_view word, T limit, T& number) {
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number);
  return error == std::errc{} && end == word.data() + word.size() && number < limit;
}

bool read_path(std::string_view word, LivePath& path) {
  const std::size_t directory = word.empty() ? word.npos : kLiveDirectories.find(word[0]);
  if (directory == word.npos) return false;
  path.directory = static_cast<u32>(directory);
  return word.size() == 1 || read_number(word.substr(1), kLiveNames, path.name);
}

constexpr u64 kSizeMax = 1 << 20;

bool read_argument(char what, std::string_view word, LiveOp& op) {
  switch (what) {
    case 'u': {
      const auto user = std::ranges::find(kUsers, word);
      op.user = static_cast<u32>(user - kUsers.begin());
      return user != kUsers.end();
    }
    case 'k':
      return word.starts_with('k') && read_number(word.substr(1), kLiveKeys, op.key);
    case 's':
      return word.starts_with('h') && read_number(word.substr(1), kLiveSlots, op.slot);
    case 'p':
      op.by_no_key_name = word.starts_with('~');
      if (op.by_no_key_name) word.remove_prefix(1);
      return word.size() > 1 && read_path(word, op.path);
    case 't':
      return word.size() > 1 && read_path(word, op.to);
    case 'd':
      return word.size() == 1 && read_path(word, op.path);
    case 'f':
      return read_flags(word, op.flags);
    case 'o':
      return read_number(word, kSizeMax, op.offset);
    case 'n':
      return read_number(word, kSizeMax, op.size);
    default:
      return read_number(word, u64{256}, op.fill);
  }
}

std::string argument_text(char what, const LiveOp& op) {
  const auto path_text = [](LivePath path) {
    return fmt::format("{}{}", kLiveDirectories[path.directory], path.name);
  };
  switch (what) {
    case 'u':
      return std::string(kUsers[op.user]);
    case 'k':
      return fmt::format("k{}", op.key);
    case 's':
      return fmt::format("h{}", op.slot);
    case 'p':
      return (op.by_no_key_name ? "~" : "") + path_text(op.path);
    case 't':
      return path_text(op.to);
    case 'd':
      return std::string(1, kLiveDirectories[op.path.directory]);
    case 'f':
      return text_of(op.flags);
    case 'o':
      return std::to_string(op.offset);
    case 'n':
      return std::to_string(op.size);
    default:
      return std::to_string(op.fill);
  }
}

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find_first_of(separators, at), text.size());
    if (end != at) parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::optional<LiveOp> op_from(std::string_view text) {
  const auto words = split(text, " \t");
  const auto form = std::ranges::find(kForms, words[0], &Form::name);
  if (form == kForms.end() || words.size() != form->arguments.size() + 1) return std::nullopt;
  LiveOp op;
  op.verb = form->verb;
  for (std::size_t i = 0; i < form->arguments.size(); ++i)
    if (!read_argument(form->arguments[i], words[i + 1], op)) return std::nullopt;
  return op;
}

// --- the generator ------------------------------------------------------------------------------

struct Weight {
  LiveVerb verb;
  u32 weight;
};
constexpr std::array<Weight, 19> kWeights = {{
    {LiveVerb::add, 9},        {LiveVerb::remove, 13},  {LiveVerb::remove_all, 3},
    {LiveVerb::key_status, 7}, {LiveVerb::open, 22},    {LiveVerb::read, 9},
    {LiveVerb::write, 10},     {LiveVerb::truncate, 2}, {LiveVerb::fsync, 3},
    {LiveVerb::close, 14},     {LiveVerb::unlink, 4},   {LiveVerb::rename, 5},
    {LiveVerb::rename_new, 1}, {LiveVerb::exchange, 2}, {LiveVerb::link, 4},
    {LiveVerb::stat, 4},       {LiveVerb::list, 3},     {LiveVerb::open_directory, 4},
    {LiveVerb::list_open, 3},
}};
// Which six files a sequence is about: all of one key in two directories, or of more keys.
constexpr std::array<std::array<LivePath, 6>, 4> kFiles = {{
    {{{0, 0}, {0, 1}, {0, 2}, {0, 3}, {1, 0}, {1, 1}}},
    {{{0, 0}, {0, 1}, {1, 0}, {2, 0}, {2, 1}, {3, 0}}},
    {{{0, 0}, {0, 1}, {2, 0}, {2, 1}, {3, 0}, {3, 1}}},
    {{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}}},
}};

class Generator {
 public:
  explicit Generator(u64 seed) : random_(seed), files_(kFiles[below(kFiles.size())]) {}

  LivePlan make() {
    const u64 count = 8 + below(below(4) == 0 ? 90 : 32);
    // Most begin with what makes the rest possible.
    if (chance(90)) add(LiveVerb::add);
    if (chance(80)) add(LiveVerb::open);
    while (plan_.size() < count) add(any_verb());
    return std::move(plan_);
  }

 private:
  u64 below(u64 limit) { return random_() % limit; }
  bool chance(u64 percent) { return below(100) < percent; }
  template <class List>
  auto one_of(const List& list) {
    return list[below(list.size())];
  }

  LiveVerb any_verb() {
    u32 sum = 0;
    for (const Weight& weight : kWeights) sum += weight.weight;
    u64 drawn = below(sum);
    for (const Weight& weight : kWeights) {
      if (drawn < weight.weight) return weight.verb;
      drawn -= weight.weight;
    }
    return LiveVerb::stat;
  }

  u64 any_offset() {
    constexpr std::array<u64, 8> kEdges = {0, 0, 1, 4095, 4096, 5000, 8192, 65536};
    return chance(70) ? one_of(kEdges) : below(100'000);
  }
  u64 any_size() {
    constexpr std::array<u64, 8> kEdges = {1, 9, 100, 511, 4096, 4097, 12'000, 0};
    return chance(80) ? one_of(kEdges) : below(40'000);
  }

  volume::OpenFlags any_flags() {
    volume::OpenFlags flags;
    const u64 access = below(10);
    flags.read = access != 0;
    flags.write = access < 7;
    flags.append = flags.write && chance(15);
    flags.create = chance(65);
    flags.exclusive = flags.create && chance(10);
    flags.truncate = flags.write && chance(10);
    return flags;
  }

  void add(LiveVerb verb) {
    LiveOp op;
    op.verb = verb;
    op.user = static_cast<u32>(chance(60) ? 1 : below(kLiveUids.size()));
    op.path = one_of(files_);
    op.to = one_of(files_);
    // Where the names are readable such a name would be one like any other: so none is made.
    op.by_no_key_name = chance(8);
    // A key that a file of this sequence is under, most often the first file's.
    op.key = kLiveKeyOf[chance(60) ? files_[0].directory : op.path.directory];
    op.slot = static_cast<u32>(below(chance(60) ? 2 : kLiveSlots));
    if (verb == LiveVerb::remove_all && chance(70)) op.user = 0;
    op.flags = any_flags();
    if (op.by_no_key_name) op.flags.create = op.flags.exclusive = false;
    op.offset = any_offset();
    op.size = any_size();
    op.fill = below(256);
    plan_.push_back(op);
  }

  SplitMix64 random_;
  const std::array<LivePath, 6> files_;
  LivePlan plan_;
};

}  // namespace

LivePlan make_live_plan(u64 seed) { return Generator(seed).make(); }

std::string text_of(const LiveOp& op) {
  const Form& form = *std::ranges::find(kForms, op.verb, &Form::verb);
  std::string text(form.name);
  for (const char what : form.arguments) text += " " + argument_text(what, op);
  return text;
}

std::string text_of(const LivePlan& plan) {
  std::string text;
  for (const LiveOp& op : plan) text += (text.empty() ? "" : "; ") + text_of(op);
  return text;
}

std::optional<LivePlan> live_plan_from(std::string_view text) {
  LivePlan plan;
  for (const std::string_view part : split(text, ";\n")) {
    if (part.find_first_not_of(" \t") == part.npos) continue;
    const auto op = op_from(part);
    if (!op) return std::nullopt;
    plan.push_back(*op);
  }
  return plan;
}

bool wants_no_key_names(const LivePlan& plan) {
  return std::ranges::any_of(plan, &LiveOp::by_no_key_name);
}

std::vector<std::byte> live_data(const LiveOp& op) {
  std::vector<std::byte> data(op.size);
  SplitMix64 random(op.fill);
  for (std::size_t at = 0; at < data.size(); at += sizeof(u64)) {
    const u64 word = random();
    std::memcpy(&data[at], &word, std::min(sizeof word, data.size() - at));
  }
  return data;
}

std::vector<std::byte> live_key(u32 key) { return raw_key(20261122 + key); }

std::string live_error(int error) {
  if (error == 0) return "0";
  const char* const name = ::strerrorname_np(error);
  return name == nullptr ? fmt::format("error {}", error) : name;
}

std::string live_bytes(Bytes data) {
  u64 hash = 0xcbf29ce484222325;  // FNV-1a
  for (const std::byte byte : data) hash = (hash ^ static_cast<u64>(byte)) * 0x100000001b3;
  return fmt::format("{} bytes, {:08x}", data.size(), hash & 0xffff'ffff);
}

std::string live_names(std::vector<std::string> names) {
  std::ranges::sort(names);
  // No-key names differ: each system draws its own nonces. They are longer than ours here.
  const bool locked = std::ranges::any_of(names, [](const auto& name) { return name.size() > 2; });
  if (locked) return fmt::format("{} no-key names", names.size());
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return "[" + text + "]";
}

}  // namespace latchkey::tests
