// Goal: fscrypt's ioctls, as bytes, answer what Linux's fs/crypto answers, and write what they say
// and nothing else. Method: calls on a volume, with arguments that are right, wrong in one place,
// or end too early. (What a kernel answers to the same bytes: fscrypt_abi_kernel_test,
// conformance_test.)

#include <linux/fs.h>

#include <cerrno>
#include <cstddef>

#include "tests/support/kernel_fscrypt.h"
#include "tests/support/volume_fixture.h"
#include "volume/fscrypt_abi.h"

namespace latchkey::tests {
namespace {

using namespace volume;  // NOLINT: the whole file is about it

constexpr Caller kRoot{0}, kOther{1001};
constexpr std::byte kOld{0xa5};

template <class T>
MutableBytes bytes_of(T& value) {
  return std::as_writable_bytes(std::span(&value, 1));
}

class FscryptAbi : public VolumeTest {
 protected:
  FscryptAnswer ask(u32 command, MutableBytes argument, Caller caller = kUser,
                    InodeId inode = kRootInode) {
    return fscrypt_ioctl(*volume_, caller, inode, {.command = command, .argument = argument});
  }
  InodeId directory(std::string_view path) {
    const auto made = make_directory(*volume_, kUser, path);
    EXPECT_TRUE(made);
    return made.value_or(InodeId{});
  }
  InodeId inode(std::string_view path) {
    const auto found = resolve(*volume_, path);
    EXPECT_TRUE(found);
    return found.value_or(InodeId{});
  }
  int set_policy(InodeId in, const fscrypt_policy_v2& wanted, Caller caller = kUser) {
    fscrypt_policy_v2 policy = wanted;
    const FscryptAnswer answer = ask(FS_IOC_SET_ENCRYPTION_POLICY, bytes_of(policy), caller, in);
    EXPECT_EQ(answer.bytes, 0U);
    return answer.error;
  }
};

TEST_F(FscryptAbi, an_add_writes_the_identifier_that_the_key_has_and_wipes_the_key) {
  const Heap raw = raw_key(1, 48);
  fscrypt_add_key_arg argument{};
  argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument.raw_size = 48;
  std::memset(&argument.key_spec.u, 0xa5, sizeof argument.key_spec.u);
  ASSERT_EQ(fscrypt_raw_key_bytes(FS_IOC_ADD_ENCRYPTION_KEY, bytes_of(argument)), 48U);
  const FscryptAnswer answer = fscrypt_ioctl(*volume_, kUser, kRootInode,
                                             {.command = FS_IOC_ADD_ENCRYPTION_KEY,
                                              .argument = bytes_of(argument),
                                              .raw_key = in_arena(raw)});
  EXPECT_EQ(answer.error, 0);
  EXPECT_EQ(answer.bytes, 24U);
  const crypto::KeyId id = needles_of(raw).id;
  EXPECT_EQ(std::memcmp(argument.key_spec.u.identifier, id.bytes.data(), 16), 0);
  EXPECT_EQ(argument.key_spec.u.__reserved[16], 0xa5);
  EXPECT_EQ(state(id), keymgr::KeyState::present);
  EXPECT_FALSE(arena_holds(raw));
}

TEST_F(FscryptAbi, an_add_that_is_refused_wipes_the_key_and_writes_nothing) {
  const Heap raw = raw_key(1, 64);
  const auto add = [&](u32 type, u32 raw_size, u32 flags, std::size_t given, Caller caller) {
    fscrypt_add_key_arg argument{};
    argument.key_spec.type = type;
    argument.raw_size = raw_size;
    std::memcpy(bytes_of(argument).data() + 48, &flags, sizeof flags);
    const Heap before(bytes_of(argument).begin(), bytes_of(argument).end());
    const FscryptAnswer answer = fscrypt_ioctl(*volume_, caller, kRootInode,
                                               {.command = FS_IOC_ADD_ENCRYPTION_KEY,
                                                .argument = bytes_of(argument),
                                                .raw_key = in_arena(Bytes(raw).first(given))});
    EXPECT_EQ(answer.bytes, 0U);
    EXPECT_TRUE(std::ranges::equal(before, bytes_of(argument)));
    EXPECT_FALSE(arena_holds(raw));
    return answer.error;
  };
  constexpr u32 kById = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, kV1 = FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR;
  EXPECT_EQ(add(kById, 65, 0, 64, kUser), EINVAL);
  EXPECT_EQ(add(kById, 15, 0, 15, kUser), EINVAL);
  EXPECT_EQ(add(kById, 64, 0, 32, kUser), EFAULT) << "the caller's memory ends in the key";
  EXPECT_EQ(add(kById, 32, 0, 64, kUser), EFAULT) << "not the key that the argument speaks of";
  EXPECT_EQ(add(kById, 16, 0, 16, kUser), EINVAL) << "as add_key()";
  EXPECT_EQ(add(kById, 64, 2, 64, kUser), EINVAL);
  EXPECT_EQ(add(kById, 64, 1, 64, kUser), EOPNOTSUPP) << "wrapped by hardware";
  EXPECT_EQ(add(kV1, 64, 0, 64, kUser), EACCES);
  EXPECT_EQ(add(kV1, 64, 0, 64, kRoot), EOPNOTSUPP);
  EXPECT_EQ(add(kV1, 64, 1, 64, kRoot), EINVAL);
  EXPECT_TRUE(volume_->key_list(kRoot).empty());
}

TEST_F(FscryptAbi, a_key_that_is_not_taken_is_not_asked_for) {
  fscrypt_add_key_arg argument{};
  argument.key_spec.type = FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER;
  argument.raw_size = 64;
  const MutableBytes bytes = bytes_of(argument);
  const auto wanted = [&](u32 command, std::size_t readable = sizeof(fscrypt_add_key_arg)) {
    return fscrypt_raw_key_bytes(command, bytes.first(readable));
  };
  EXPECT_EQ(wanted(FS_IOC_ADD_ENCRYPTION_KEY), 64U);
  EXPECT_EQ(wanted(FS_IOC_ADD_ENCRYPTION_KEY, 79), 0U);
  EXPECT_EQ(wanted(FS_IOC_REMOVE_ENCRYPTION_KEY), 0U);
  argument.raw_size = ~u32{0};
  EXPECT_EQ(wanted(FS_IOC_ADD_ENCRYPTION_KEY), 0U);
  argument.raw_size = 0;
  argument.key_id = 7;
  EXPECT_EQ(wanted(FS_IOC_ADD_ENCRYPTION_KEY), 0U);
}

TEST_F(FscryptAbi, a_removal_tells_its_flags_and_one_that_is_refused_writes_nothing) {
  const crypto::KeyId id = vault();
  add_key(kOther);
  const HandleId held = open("/vault/file");
  const auto remove = [&](Caller caller, bool all_users = false) {
    auto argument = kernel::about<fscrypt_remove_key_arg>(id);
    argument.removal_status_flags = 0xa5;
    const FscryptAnswer answer =
        ask(all_users ? FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS : FS_IOC_REMOVE_ENCRYPTION_KEY,
            bytes_of(argument), caller);
    EXPECT_EQ(answer.bytes, answer.error == 0 ? 44U : 0U);
    EXPECT_EQ(answer.error != 0, argument.removal_status_flags == 0xa5);
    return std::pair{answer.error, answer.error == 0 ? argument.removal_status_flags : 0};
  };
  using Answer = std::pair<int, u32>;
  EXPECT_EQ(remove(kRoot), (Answer{ENOKEY, 0}));
  EXPECT_EQ(remove(kUser, true), (Answer{EACCES, 0}));
  EXPECT_EQ(remove(kUser), (Answer{0, FSCRYPT_KEY_REMOVAL_STATUS_FLAG_OTHER_USERS}));
  EXPECT_EQ(remove(kOther), (Answer{0, FSCRYPT_KEY_REMOVAL_STATUS_FLAG_FILES_BUSY}));
  close(held);
  EXPECT_EQ(remove(kOther), (Answer{ENOKEY, 0}));
}

TEST_F(FscryptAbi, a_status_is_the_reports_and_zeros) {
  const crypto::KeyId id = add_key();
  fscrypt_get_key_status_arg argument{};
  const auto ask_status = [&](u32 type, Caller caller) {
    std::ranges::fill(bytes_of(argument), kOld);
    argument.key_spec = kernel::about<fscrypt_get_key_status_arg>(id).key_spec;
    argument.key_spec.type = type;
    std::ranges::fill(argument.__reserved, 0);
    const FscryptAnswer answer = ask(FS_IOC_GET_ENCRYPTION_KEY_STATUS, bytes_of(argument), caller);
    EXPECT_EQ(answer.error, 0);
    EXPECT_EQ(answer.bytes, sizeof argument);
    EXPECT_TRUE(std::ranges::all_of(argument.__out_reserved, [](u32 word) { return word == 0; }));
  };
  ask_status(FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, kUser);
  EXPECT_EQ(argument.status, u32{FSCRYPT_KEY_STATUS_PRESENT});
  EXPECT_EQ(argument.status_flags, u32{FSCRYPT_KEY_STATUS_FLAG_ADDED_BY_SELF});
  EXPECT_EQ(argument.user_count, 1U);
  ask_status(FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER, kOther);
  EXPECT_EQ(argument.status, u32{FSCRYPT_KEY_STATUS_ABSENT}) << "a stranger";
  ask_status(FSCRYPT_KEY_SPEC_TYPE_DESCRIPTOR, kUser);
  EXPECT_EQ(argument.status, u32{FSCRYPT_KEY_STATUS_ABSENT}) << "the same bytes, as a descriptor";
  EXPECT_EQ(argument.user_count, 0U);
}

TEST_F(FscryptAbi, a_policy_is_read_back_as_it_was_set) {
  const crypto::KeyId id = add_key();
  const InodeId made = directory("/made");
  const fscrypt_policy_v2 policy = kernel::policy_of(id);
  ASSERT_EQ(set_policy(made, policy), 0);
  EXPECT_EQ(volume_->stat(made)->key_id, id);
  EXPECT_EQ(set_policy(made, policy), 0) << "the same again";

  fscrypt_get_policy_ex_arg argument{};
  const auto get = [&](u64 policy_size, std::size_t readable, InodeId in) {
    std::ranges::fill(bytes_of(argument), kOld);
    argument.policy_size = policy_size;
    return ask(FS_IOC_GET_ENCRYPTION_POLICY_EX, bytes_of(argument).first(readable), kUser, in);
  };
  EXPECT_EQ(get(24, 32, made).bytes, 32U);
  EXPECT_EQ(argument.policy_size, 24U);
  EXPECT_EQ(std::memcmp(&argument.policy, &policy, sizeof policy), 0);
  EXPECT_EQ(get(~u64{0}, 32, made).error, 0);
  EXPECT_EQ(argument.policy_size, 24U);
  EXPECT_EQ(get(23, 32, made).error, EOVERFLOW);
  EXPECT_EQ(argument.policy_size, 23U);
  EXPECT_EQ(get(24, 31, made).error, EFAULT);
  EXPECT_EQ(get(24, 7, made).error, EFAULT);
  EXPECT_EQ(get(24, 32, kRootInode).error, ENODATA);

  fscrypt_policy_v1 v1{};
  EXPECT_EQ(ask(FS_IOC_GET_ENCRYPTION_POLICY, bytes_of(v1), kUser, made).error, EINVAL);
  EXPECT_EQ(ask(FS_IOC_GET_ENCRYPTION_POLICY, bytes_of(v1)).error, ENODATA);
  crypto::Nonce nonce;
  EXPECT_EQ(ask(FS_IOC_GET_ENCRYPTION_NONCE, nonce.bytes, kUser, made).bytes, 16U);
  EXPECT_EQ(nonce, volume_->stat(made)->nonce);
  EXPECT_EQ(ask(FS_IOC_GET_ENCRYPTION_NONCE, nonce.bytes).error, ENODATA);
  EXPECT_EQ(
      ask(FS_IOC_GET_ENCRYPTION_NONCE, MutableBytes(nonce.bytes).first(15), kUser, made).error,
      EFAULT);

  // A file has its directory's policy and a nonce of its own, a special file neither.
  put("/made/file", "x");
  EXPECT_EQ(get(24, 32, inode("/made/file")).error, 0);
  EXPECT_EQ(std::memcmp(&argument.policy, &policy, sizeof policy), 0);
  ASSERT_EQ(ask(FS_IOC_GET_ENCRYPTION_NONCE, nonce.bytes, kUser, inode("/made/file")).error, 0);
  EXPECT_NE(nonce, volume_->stat(made)->nonce);
  ASSERT_TRUE(volume_->make_node(kUser, made, "fifo", {.kind = FileKind::fifo, .mode = 0600}));
  EXPECT_EQ(get(24, 32, inode("/made/fifo")).error, ENODATA);
}

// The order in which a policy that is wrong in several ways is refused.
TEST_F(FscryptAbi, what_is_wrong_with_a_policy_is_told_in_the_kernels_order) {
  const crypto::KeyId id = add_key(), absent = needles_of(raw_key(9)).id;
  const InodeId empty = directory("/empty"), full = directory("/full"), other = directory("/other");
  put("/full/file", "x");
  ASSERT_EQ(set_policy(other, kernel::policy_of(id)), 0);
  fscrypt_policy_v2 wrong = kernel::policy_of(absent);
  wrong.contents_encryption_mode = 0xff;
  fscrypt_policy_v2 no_version = wrong;
  no_version.version = 1;

  EXPECT_EQ(ask(FS_IOC_SET_ENCRYPTION_POLICY, {}, kUser, other).error, EFAULT);
  EXPECT_EQ(set_policy(other, no_version, kOther), EINVAL) << "before whose it is";
  EXPECT_EQ(ask(FS_IOC_SET_ENCRYPTION_POLICY, bytes_of(wrong).first(23), kOther, other).error,
            EFAULT);
  EXPECT_EQ(set_policy(other, wrong, kOther), EACCES) << "before that it has another";
  EXPECT_EQ(set_policy(other, wrong), EEXIST);
  EXPECT_EQ(set_policy(inode("/full/file"), wrong), ENOTDIR) << "before what it says";
  EXPECT_EQ(set_policy(full, wrong), ENOTEMPTY);
  EXPECT_EQ(set_policy(empty, wrong), EINVAL) << "before its key";
  EXPECT_EQ(set_policy(empty, kernel::policy_of(absent)), ENOKEY);
  EXPECT_FALSE(volume_->stat(empty)->key_id);

  fscrypt_policy_v1 v1{};
  v1.contents_encryption_mode = FSCRYPT_MODE_AES_256_XTS;
  v1.filenames_encryption_mode = FSCRYPT_MODE_AES_256_CTS;
  EXPECT_EQ(ask(FS_IOC_SET_ENCRYPTION_POLICY, bytes_of(v1), kUser, empty).error, EINVAL);
  EXPECT_EQ(ask(FS_IOC_SET_ENCRYPTION_POLICY, bytes_of(v1), kUser, other).error, EEXIST);
  EXPECT_EQ(ask(FS_IOC_SET_ENCRYPTION_POLICY, bytes_of(v1).first(11), kUser, empty).error, EFAULT);
}

TEST_F(FscryptAbi, every_field_of_a_policy_counts) {
  const crypto::KeyId id = add_key();
  const InodeId empty = directory("/empty"), other = directory("/other");
  ASSERT_EQ(set_policy(other, kernel::policy_of(id)), 0);
  // All bytes but the version's, each bit of them.
  for (std::size_t at = 1; at < sizeof(fscrypt_policy_v2); ++at) {
    for (u32 bit = 0; bit < 8; ++bit) {
      SCOPED_TRACE(std::to_string(at) + "." + std::to_string(bit));
      fscrypt_policy_v2 policy = kernel::policy_of(id);
      bytes_of(policy)[at] ^= std::byte(1U << bit);
      const bool is_key = at >= offsetof(fscrypt_policy_v2, master_key_identifier);
      EXPECT_EQ(set_policy(empty, policy), is_key ? ENOKEY : EINVAL);
      EXPECT_EQ(set_policy(other, policy), EEXIST);
    }
  }
  EXPECT_EQ(set_policy(empty, kernel::policy_of(id)), 0);
}

TEST_F(FscryptAbi, a_handle_is_where_a_call_goes_to_and_other_calls_go_nowhere) {
  const crypto::KeyId id = add_key();
  const InodeId made = directory("/made");
  const auto held = volume_->open_directory(kUser, made, "/made");
  ASSERT_TRUE(held);
  fscrypt_policy_v2 policy = kernel::policy_of(id);
  const auto set = [&](HandleId handle) {
    return fscrypt_ioctl(*volume_, kUser, handle,
                         {.command = FS_IOC_SET_ENCRYPTION_POLICY, .argument = bytes_of(policy)})
        .error;
  };
  EXPECT_EQ(set(*held), 0);
  EXPECT_EQ(volume_->stat(made)->key_id, id);
  close(*held);
  EXPECT_EQ(set(*held), EBADF);
  for (const u32 command : {u32{FS_IOC_GETFLAGS}, u32{FS_IOC_GET_ENCRYPTION_PWSALT}, u32{0}}) {
    EXPECT_EQ(fscrypt_argument_bytes(command), 0U);
    EXPECT_EQ(ask(command, bytes_of(policy)).error, ENOTTY);
  }
}

}  // namespace
}  // namespace latchkey::tests
