// session: one process that holds a volume open and obeys commands on standard input, a JSON object
// a line in answer. This is how a script races a removal against writers that stay, and looks for
// what is left of the key.
//
//   load FILE           the key file's bytes into the arena        {}
//   add                 adds the loaded key, which is consumed     {"identifier"}
//   write PATH N        N writers append to PATH-0 ... and fsync   {}
//   stop                the writers stand still, their handles stay open   counts
//   go                  they write on                              {}
//   counts              acknowledged, after the removal, failures, the last error
//   read PATH           reads a file through                       {"bytes"}
//   open PATH           what a new open answers                    {"error"}
//   maps N              nonces of each writer's last N extents, read again: needles   {"nonces"}
//   hold PATH           opens a file for reading; its handle stays open    {"extents"}
//   extents FIRST N     reads N extents of it from the FIRST on: needles   {"nonces"}
//   closed PATH         reads a file through and closes it: needles of their own groups  {"nonces"}
//   fork                a child that does nothing, until the next one or the end  {"pid"}
//   names PATH          the keys of that directory's names: needles        {"nonce"}
//   plant, unplant      copies of the keys of names lie in the arena, or not   {}
//   signals             from now on SIGUSR1 has a handler, which counts and keeps what it can see
//                       of registers; each time a phase with room of its own for that begins
//                       {"signals", "phases": frames kept and dropped in each before}
//   remove MODE [all-users] [dry-run] [wait] [deadline=MS] [then=MODE]
//                       the report (removal_report.h)
//   status              {"state", "holders"}
//   close               all handles are closed                     {"state"}
//   scan                needles by group, in this process's memory
//   verify              every acknowledged byte is there, none more
//   shut                the volume is closed; after it only scan   {}

#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/hex.h"
#include "cli/removal_report.h"
#include "cli/session_child.h"
#include "cli/session_needles.h"
#include "cli/session_signals.h"
#include "cli/session_writers.h"
#include "cli/verbs.h"
#include "volume/paths.h"

namespace latchkey::cli {

using nlohmann::json;

namespace {

class Session {
 public:
  explicit Session(volume::Volume& volume)
      : volume_(volume), needles_(system_env()), writers_(volume) {}

  json obey(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "remove") return remove(words);
    std::string argument;
    u32 number = 1;
    words >> argument >> number;
    if (verb == "load") return load(argument);
    if (verb == "add") return add();
    if (verb == "write") return write(argument, number);
    if (verb == "stop") return stop();
    if (verb == "go") return go();
    if (verb == "counts") return counts();
    if (verb == "read") return read(argument);
    if (verb == "open") return open(argument);
    if (verb == "maps") return maps(number_in(argument));
    if (verb == "hold") return hold(argument);
    if (verb == "extents") return extents(number_in(argument), number);
    if (verb == "closed") return closed(argument);
    if (verb == "fork") return fork();
    if (verb == "names") return names(argument);
    if (verb == "plant") return plant();
    if (verb == "unplant") return unplant();
    if (verb == "signals") return signals();
    if (verb == "status") return status();
    if (verb == "close") return close();
    if (verb == "scan") return scan();
    if (verb == "verify") return verify();
    if (verb == "shut") return shut();
    return {{"error", "no such command"}};
  }

 private:
  static json error_of(const Error& error) {
    return {{"error", name_of(error.code)}, {"message", describe(error)}};
  }
  static json nothing_or(const Result<void>& result) {
    return result ? json::object() : error_of(result.error());
  }
  static std::size_t number_in(const std::string& text) {
    return std::strtoul(text.c_str(), nullptr, 10);
  }

  json load(const std::string& file) {
    KeySource source;
    source.file = file;
    auto secret = read_key(source);
    if (!secret) return error_of(secret.error());
    secret_ = std::move(*secret);
    if (auto added = needles_.add_master(secret_.bytes()); !added) return error_of(added.error());
    return json::object();
  }

  json add() {
    if (secret_.empty()) return {{"error", "no key is loaded"}};
    auto id = volume_.add_key(caller(), std::move(secret_));
    if (!id) return error_of(id.error());
    id_ = *id;
    writers_.note_add();
    return {{"identifier", to_hex(id->span())}};
  }

  json write(const std::string& path, u32 count) {
    return nothing_or(writers_.add(caller(), path, count));
  }

  json go() {
    writers_.go();
    return json::object();
  }

  json stop() {
    writers_.stop();
    return counts();
  }

  json counts() {
    const SessionWriters::Counts sum = writers_.counts();
    return {{"acknowledged", sum.acknowledged},
            {"after_removal", sum.after_removal},
            {"failures", sum.failures},
            {"last_error", sum.last_error}};
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

  // What is read has its key in a reader's slot: what a scan must find.
  Result<void> read_extents(volume::HandleId handle, std::span<const volume::MapRow> rows,
                            json& nonces, std::string_view whose = "") {
    for (const volume::MapRow& row : rows) {
      nonces.push_back(to_hex(row.nonce.span()));
      LK_TRYV(needles_.add_extent(row.nonce, whose));
      std::vector<std::byte> piece(row.length);
      const KeptFrames frames;
      LK_TRY([[maybe_unused]] const u64 got, volume_.read(handle, row.file_offset, piece));
    }
    return {};
  }

  json maps(std::size_t rows_each) {
    json nonces = json::array();
    for (const SessionWriters::File* file : writers_.files()) {
      auto rows = volume_.map(file->handle);
      if (!rows) return error_of(rows.error());
      const auto last = std::span(*rows).last(std::min(rows->size(), rows_each));
      if (auto done = read_extents(file->handle, last, nonces); !done)
        return error_of(done.error());
    }
    return {{"nonces", nonces}};
  }

  json hold(const std::string& path) {
    auto handle = volume::open_path(volume_, caller(), path, {});
    if (!handle) return error_of(handle.error());
    auto rows = volume_.map(*handle);
    if (!rows) return error_of(rows.error());
    held_.emplace_back(*handle, std::move(*rows));
    return {{"extents", held_.back().second.size()}};
  }

  json extents(std::size_t first, std::size_t count) {
    json nonces = json::array();
    for (const auto& [handle, rows] : held_) {
      const auto some = std::span(rows).subspan(std::min(first, rows.size()));
      auto done = read_extents(handle, some.first(std::min(count, some.size())), nonces);
      if (!done) return error_of(done.error());
    }
    return {{"nonces", nonces}};
  }

  json names(const std::string& path) {
    auto directory = volume::resolve(volume_, path);
    if (!directory) return error_of(directory.error());
    auto stat = volume_.stat(*directory);
    if (!stat) return error_of(stat.error());
    if (auto added = needles_.add_names(stat->nonce); !added) return error_of(added.error());
    return {{"nonce", to_hex(stat->nonce.span())}};
  }

  json plant() { return nothing_or(needles_.plant()); }

  json unplant() {
    needles_.unplant();
    return json::object();
  }

  json signals() {
    if (stack_ == nullptr) stack_ = std::make_unique<SignalStack>();
    json phases = json::array();
    for (const SignalPhase& phase : signal_phases())
      phases.push_back({{"kept", phase.kept}, {"dropped", phase.dropped}});
    if (!begin_signal_phase()) return {{"error", "no more phases"}};
    return {{"signals", signals_counted()}, {"phases", phases}};
  }

  static std::optional<volume::RemovalRequest> request_in(std::istringstream& words) {
    volume::RemovalRequest request;
    std::string word;
    words >> word;
    const auto mode = keymgr::parse_removal_mode(word);
    if (!mode) return {};
    request.mode = *mode;
    while (words >> word) {
      if (word == "all-users") {
        request.all_users = true;
      } else if (word == "dry-run") {
        request.dry_run = true;
      } else if (word == "wait") {
        request.wait = true;
      } else if (word.starts_with("deadline=")) {
        request.deadline_ns = number_in(word.substr(9)) * 1'000'000;
      } else if (word.starts_with("then=")) {
        const auto then = keymgr::parse_removal_mode(word.substr(5));
        if (!then) return {};
        request.then = *then;
      } else {
        return {};
      }
    }
    return request;
  }

  json remove(std::istringstream& words) {
    const auto request = request_in(words);
    if (!request) return {{"error", "remove MODE [words]"}};
    volume::RemovalReport report;
    const auto removed = volume_.remove_key(caller(), id_, *request, report);
    if (!removed) return describe_removal(report, removed.error());
    if (!request->dry_run) writers_.note_removal();
    return describe_removal(report);
  }

  json status() {
    const volume::KeyReport report = volume_.key_status(caller(), id_);
    return {{"state", keymgr::name_of(report.state)},
            {"holders", describe_holders(report.holders)}};
  }

  json close() {
    json errors = json::array();
    const auto close = [&](volume::HandleId handle) {
      if (auto closed = volume_.close_handle(handle); !closed)
        errors.push_back(describe(closed.error()));
    };
    for (const SessionWriters::File* file : writers_.files()) close(file->handle);
    for (const auto& [handle, rows] : held_) close(handle);
    held_.clear();
    json answer = status();
    answer["errors"] = errors;
    return answer;
  }

  json scan() {
    auto groups = needles_.scan();
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
    const auto verified = writers_.verify(caller());
    if (!verified) return error_of(verified.error());
    return {{"lines", verified->lines},
            {"files", verified->files},
            {"files_wrong", verified->files_wrong}};
  }

  // Those of a file that is closed again: under sealed they go, while others stay.
  json closed(const std::string& path) {
    auto handle = volume::open_path(volume_, caller(), path, {});
    if (!handle) return error_of(handle.error());
    json nonces = json::array();
    auto rows = volume_.map(*handle);
    const auto read = rows ? read_extents(*handle, *rows, nonces, "closed_")
                           : Result<void>(std::unexpected(rows.error()));
    (void)volume_.close_handle(*handle);
    if (!read) return error_of(read.error());
    return {{"nonces", nonces}};
  }

  json fork() {
    const auto pid = child_.start();
    if (!pid) return error_of(pid.error());
    return {{"pid", *pid}};
  }

  json shut() {
    writers_.stop();
    return nothing_or(volume_.close());
  }

  volume::Volume& volume_;
  SessionNeedles needles_;
  SecretBytes secret_;
  crypto::KeyId id_;
  std::vector<std::pair<volume::HandleId, std::vector<volume::MapRow>>> held_;
  std::unique_ptr<SignalStack> stack_;
  SessionChild child_;
  SessionWriters writers_;
};

}  // namespace

Exit run_session(const Common& common, const SessionArgs& args) {
  volume::VolumeOptions options;
  if (args.key_slots != 0) options.key_slots = args.key_slots;
  return with_volume(common, args.image, {}, options,
                     [&](volume::Volume& volume, const std::optional<crypto::KeyId>&) {
                       Session session(volume);
                       for (std::string line; std::getline(std::cin, line);) {
                         if (line == "quit") break;
                         // Names of files are bytes.
                         const json answer = session.obey(line);
                         fmt::print("{}\n",
                                    answer.dump(-1, ' ', false, json::error_handler_t::replace));
                         std::fflush(stdout);
                       }
                       return Exit::ok;
                     });
}

}  // namespace latchkey::cli
