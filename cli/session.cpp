// session: one process that holds a volume open and obeys commands on standard input, a JSON object
// a line in answer. Until the mount exists this is how a script races a removal against writers
// that stay.
//
//   load FILE           the key file's bytes into the arena        {"identifier"}
//   add                 adds the loaded key, which is consumed     {"identifier"}
//   write PATH N        N writers append to PATH-0 ... and fsync   {}
//   stop                the writers stop, their handles stay open  counts
//   go                  they write on                              {}
//   counts              acknowledged, synced, before and after the removal, failures
//   read PATH           reads a file through                       {"bytes"}
//   open PATH           what a new open answers                    {"error"}
//   maps N              nonces of each writer's last N extents, read again: needles   {"nonces"}
//   remove MODE         {"state", "files_busy", "holders", ...}
//   status              {"state", "holders"}
//   close               the writers' handles are closed            {"state"}
//   scan                needles by group, in this process's memory
//   verify              every acknowledged byte is there, none more

#include <fmt/format.h>

#include <atomic>
#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/hex.h"
#include "cli/memory_scan.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

// Appends numbered lines to one file and makes each durable.
struct SessionWriter {
  std::string path;
  volume::HandleId handle{};
  u64 lines = 0;
  std::atomic<u64> acknowledged{0}, after_removal{0}, failures{0};
  std::thread thread;

  static std::string line(u64 number) {
    return fmt::format("line {:012} {}\n", number, std::string(200, '.'));
  }
};

// What the needles' keys are derived from, also those of extents that are sealed after the key was
// removed: masked as the needles are, so that it is none itself.
struct MaskedState {
  std::array<std::byte, sizeof(crypto::HkdfState)> masked, mask;
  bool kept = false;

  void keep(const crypto::HkdfState& state) {
    system_env().random(mask);
    const Bytes bytes = std::as_bytes(std::span(&state, 1));
    for (std::size_t i = 0; i < mask.size(); ++i) masked[i] = bytes[i] ^ mask[i];
    kept = true;
  }
  void open(crypto::HkdfState& state) const {
    const MutableBytes bytes = std::as_writable_bytes(std::span(&state, 1));
    for (std::size_t i = 0; i < mask.size(); ++i) bytes[i] = masked[i] ^ mask[i];
  }
};

class Session {
 public:
  Session(volume::Volume& volume) : volume_(volume), scan_(system_env()) {}
  ~Session() { stop(); }

  json obey(const std::string& verb, const std::string& argument, u32 number) {
    if (verb == "load") return load(argument);
    if (verb == "add") return add();
    if (verb == "write") return write(argument, number);
    if (verb == "stop") return stop();
    if (verb == "go") return go();
    if (verb == "counts") return counts();
    if (verb == "read") return read(argument);
    if (verb == "open") return open(argument);
    if (verb == "maps") return maps(std::strtoul(argument.c_str(), nullptr, 10));
    if (verb == "remove") return remove(argument);
    if (verb == "status") return status();
    if (verb == "close") return close();
    if (verb == "scan") return scan();
    if (verb == "verify") return verify();
    return {{"error", "no such command"}};
  }

 private:
  static json error_of(const Error& error) {
    return {{"error", name_of(error.code)}, {"message", describe(error)}};
  }

  json load(const std::string& file) {
    KeySource source;
    source.file = file;
    auto secret = read_key(source);
    if (!secret) return error_of(secret.error());
    secret_ = std::move(*secret);
    auto state = Secret<crypto::HkdfState>::create();
    if (!state) return error_of(state.error());
    crypto::hkdf_extract(secret_.bytes(), **state);
    scan_.add("master", secret_.bytes());
    scan_.add("hkdf_state", std::as_bytes(std::span(&**state, 1)));
    return {{"identifier", to_hex(crypto::key_identifier(**state).span())}};
  }

  json add() {
    if (secret_.empty()) return {{"error", "no key is loaded"}};
    {
      auto state = Secret<crypto::HkdfState>::create();
      if (!state) return error_of(state.error());
      crypto::hkdf_extract(secret_.bytes(), **state);
      nonces_state_.keep(**state);
    }
    auto id = volume_.add_key(caller(), std::move(secret_));
    if (!id) return error_of(id.error());
    id_ = *id;
    removed_ = false;
    return {{"identifier", to_hex(id->span())}};
  }

  json write(const std::string& path, u32 count) {
    for (u32 i = 0; i < count; ++i) {
      auto writer = std::make_unique<SessionWriter>();
      writer->path = fmt::format("{}-{}", path, i);
      volume::OpenFlags flags;
      flags.write = flags.create = true;
      auto handle = volume::open_path(volume_, caller(), writer->path, flags, 0600);
      if (!handle) return error_of(handle.error());
      writer->handle = *handle;
      writers_.push_back(std::move(writer));
    }
    return go();
  }

  json go() {
    stopping_ = false;
    for (auto& writer : writers_)
      writer->thread = std::thread([this, w = writer.get()] { append(*w); });
    return json::object();
  }

  void append(SessionWriter& writer) {
    while (!stopping_) {
      const std::string line = SessionWriter::line(writer.lines);
      const bool removed = removed_;
      if (!volume_.append(writer.handle, std::as_bytes(std::span(line))) ||
          !volume_.fsync(writer.handle)) {
        ++writer.failures;
        return;
      }
      ++writer.lines;
      ++writer.acknowledged;
      if (removed) ++writer.after_removal;
    }
  }

  json stop() {
    stopping_ = true;
    for (auto& writer : writers_)
      if (writer->thread.joinable()) writer->thread.join();
    return counts();
  }

  json counts() {
    u64 acknowledged = 0, after = 0, failures = 0;
    for (const auto& writer : writers_) {
      acknowledged += writer->acknowledged;
      after += writer->after_removal;
      failures += writer->failures;
    }
    return {{"acknowledged", acknowledged}, {"after_removal", after}, {"failures", failures}};
  }

  json read(const std::string& path) {
    auto handle = volume::open_path(volume_, caller(), path, {});
    if (!handle) return error_of(handle.error());
    std::vector<std::byte> buffer(kMiB);
    u64 offset = 0;
    Result<u64> got = u64{1};
    while (got && *got != 0) {
      got = volume_.read(*handle, offset, buffer);
      if (got) offset += *got;
    }
    auto closed = volume_.close_handle(*handle);
    if (!got) return error_of(got.error());
    if (!closed) return error_of(closed.error());
    return {{"bytes", offset}};
  }

  json open(const std::string& path) {
    auto handle = volume::open_path(volume_, caller(), path, {});
    if (!handle) return error_of(handle.error());
    (void)volume_.close_handle(*handle);
    return {{"error", nullptr}};
  }

  // The last extents are read, so that readers' slots hold their keys: what a scan must find.
  json maps(std::size_t rows_each) {
    json nonces = json::array();
    for (const auto& writer : writers_) {
      auto rows = volume_.map(writer->handle);
      if (!rows) return error_of(rows.error());
      const std::size_t first = rows->size() - std::min(rows->size(), rows_each);
      for (const volume::MapRow& row : std::span(*rows).subspan(first)) {
        nonces.push_back(to_hex(row.nonce.span()));
        if (auto added = add_needles(row.nonce); !added) return error_of(added.error());
        std::vector<std::byte> piece(row.length);
        if (auto got = volume_.read(writer->handle, row.file_offset, piece); !got)
          return error_of(got.error());
      }
    }
    return {{"nonces", nonces}};
  }

  Result<void> add_needles(const crypto::Nonce& nonce) {
    if (!nonces_state_.kept) return {};
    LK_TRY(auto state, Secret<crypto::HkdfState>::create());
    LK_TRY(auto key, Secret<crypto::XtsKey>::create());
    nonces_state_.open(*state);
    crypto::derive_extent_key(*state, nonce, *key);
    // Round keys 0 and 1 of the data and the tweak schedule are the extent key itself.
    for (const Bytes schedule : {Bytes(key->encrypt), Bytes(key->tweak)}) {
      scan_.add("extent_key", schedule.first(32));
      scan_.add("round_key", schedule.subspan(32));
    }
    burn_stack_and_registers();
    return {};
  }

  json holders(const std::vector<volume::Holder>& list) {
    json out = json::array();
    for (const volume::Holder& holder : list)
      out.push_back({{"path", holder.path},
                     {"uid", holder.uid},
                     {"handle", static_cast<u64>(holder.handle)},
                     {"dirty_bytes", holder.dirty_bytes},
                     {"since", rfc3339(holder.since_ns)}});
    return out;
  }

  json remove(const std::string& name) {
    const auto mode = keymgr::parse_removal_mode(name);
    if (!mode) return {{"error", "no such mode"}};
    auto report = volume_.remove_key(caller(), id_, *mode);
    if (!report) return error_of(report.error());
    removed_ = true;
    json phases = json::array();
    for (const volume::RemovalPhase& phase : report->phases)
      phases.push_back({{"name", phase.name}, {"ns", phase.ns}});
    return {{"state", keymgr::name_of(report->state)}, {"files_busy", report->files_busy},
            {"other_users", report->other_users},      {"holders", holders(report->holders)},
            {"bytes_flushed", report->bytes_flushed},  {"bytes_lost", report->bytes_lost},
            {"files_lost", report->files_lost},        {"phases", phases}};
  }

  json status() {
    const volume::KeyReport report = volume_.key_status(caller(), id_);
    return {{"state", keymgr::name_of(report.state)}, {"holders", holders(report.holders)}};
  }

  json close() {
    json errors = json::array();
    for (const auto& writer : writers_)
      if (auto closed = volume_.close_handle(writer->handle); !closed)
        errors.push_back(describe(closed.error()));
    json answer = status();
    answer["errors"] = errors;
    return answer;
  }

  json scan() {
    auto groups = scan_.scan();
    if (!groups) return error_of(groups.error());
    json out = json::object();
    for (const MemoryScan::Group& group : *groups)
      out[group.name] = {{"needles", group.needles},
                         {"found_now", group.found_now},
                         {"found_ever", group.found_ever}};
    out["arena"] = arena_status().kind == ArenaKind::memfd_secret ? "memfd_secret" : "locked";
    return out;
  }

  json verify() {
    u64 wrong = 0, lines = 0;
    for (const auto& writer : writers_) {
      std::string expected;
      for (u64 i = 0; i < writer->acknowledged; ++i) expected += SessionWriter::line(i);
      lines += writer->acknowledged;
      auto handle = volume::open_path(volume_, caller(), writer->path, {});
      if (!handle) return error_of(handle.error());
      std::string text(expected.size() + 1, '\0');
      auto got = volume_.read(*handle, 0, std::as_writable_bytes(std::span(text)));
      (void)volume_.close_handle(*handle);
      if (!got) return error_of(got.error());
      text.resize(*got);
      if (text != expected) ++wrong;
    }
    return {{"lines", lines}, {"files", writers_.size()}, {"files_wrong", wrong}};
  }

  volume::Volume& volume_;
  MemoryScan scan_;
  SecretBytes secret_;
  MaskedState nonces_state_;
  crypto::KeyId id_;
  std::vector<std::unique_ptr<SessionWriter>> writers_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> removed_{false};
};

}  // namespace

Exit run_session(const Common& common, const SessionArgs& args) {
  return with_volume(common, args.image, {}, {},
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       Session session(volume);
                       for (std::string line; std::getline(std::cin, line);) {
                         std::istringstream words(line);
                         std::string verb, argument;
                         u32 number = 1;
                         words >> verb >> argument >> number;
                         if (verb == "quit") break;
                         fmt::print("{}\n", session.obey(verb, argument, number).dump());
                         std::fflush(stdout);
                       }
                       return Exit::ok;
                     });
}

}  // namespace latchkey::cli
