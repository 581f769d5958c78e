// Goal: an image of any content gets answers, never a stopped process: whatever its metadata say
// behind checksums that are right. Method: small real stores, changed by seed with the fuzz
// target's mutator, opened, checked, read and written; and the mutator's own promises.
// open_fuzz.cpp goes on from here by coverage.

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/node.h"
#include "tests/support/image_mutator.h"
#include "tests/support/image_opening.h"
#include "tests/support/seed.h"

namespace latchkey::tests {
namespace {

ImageMutator mutator(u64 seed) {
  return {seed, [](MutableBytes bytes, u64 chance) {
            bytes[chance % bytes.size()] ^= static_cast<std::byte>(1 + chance / 8191 % 255);
          }};
}

TEST(StoreImage, an_encoded_image_decodes_to_the_same_blocks) {
  for (const StoreImage& image : seed_images()) {
    const StoreImage again = StoreImage::decode(image.encode());
    EXPECT_EQ(again.device_blocks, image.device_blocks);
    EXPECT_TRUE(again.blocks == image.blocks);
  }
}

TEST(StoreImage, any_bytes_are_some_image) {
  std::mt19937_64 random(seed_base());
  for (int i = 0; i < 200; ++i) {
    std::vector<std::byte> bytes(random() % 9000);
    std::ranges::generate(bytes, [&] { return static_cast<std::byte>(random()); });
    const StoreImage image = StoreImage::decode(bytes);
    EXPECT_LE(image.device_blocks, StoreImage::kDeviceBlocksMax);
    EXPECT_TRUE(image.blocks.empty() || image.blocks.rbegin()->first < image.device_blocks);
  }
}

TEST(StoreImage, every_file_of_the_seeds_is_read_whole) {
  std::vector<u32> files;
  for (const StoreImage& image : seed_images()) files.push_back(open_everything(image));
  EXPECT_EQ(files, (std::vector<u32>{0, 4, 4, 8, 64, 8, 4, 18}));
}

// Nodes that say they are elsewhere cost every file; repaired, the image is what it was.
TEST(StoreImage, repair_makes_changed_nodes_believed) {
  StoreImage image = seed_images()[3];
  const StoreImage before = image;
  image.repair(true);
  EXPECT_TRUE(image.blocks == before.blocks) << "what is right stays";
  for (const u64 node : image.nodes()) {
    auto head = load_disk<engine::NodeHeader>(image.blocks[node]);
    head.place = head.place + 1;
    store_disk(image.blocks[node], head);
  }
  EXPECT_EQ(open_everything(image), 0U);
  image.repair(true);
  EXPECT_EQ(open_everything(image), 8U);
}

TEST(StoreImage, changed_images_are_answered) {
  const std::vector<StoreImage> seeds = seed_images();
  for (u64 i = 0; i < 300; ++i) {
    const u64 seed = seed_base() + i;
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    StoreImage image = seeds[seed % seeds.size()];
    ImageMutator change = mutator(seed);
    for (u64 rounds = 1 + seed % 4; rounds != 0; --rounds) change.mutate(image);
    if (seed % 5 == 0) change.cross(image, seeds[seed / 5 % seeds.size()]);
    open_everything(image);
  }
}

TEST(StoreImage, a_repair_of_changed_images_makes_nothing_worse) {
  const std::vector<StoreImage> seeds = seed_images();
  int mended = 0;
  for (u64 i = 0; i < 400; ++i) {
    const u64 seed = seed_base() + 1'000'000 + i;
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    StoreImage image = seeds[seed % seeds.size()];
    ImageMutator change = mutator(seed);
    for (u64 rounds = 1 + seed % 4; rounds != 0; --rounds) change.mutate(image);
    mended += repair_everything(image) ? 1 : 0;
  }
  EXPECT_GE(mended, 40);
}

}  // namespace
}  // namespace latchkey::tests
