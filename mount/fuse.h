#pragma once
// libfuse's low-level interface, as of 3.14.

#define FUSE_USE_VERSION 314
#include <fuse3/fuse_lowlevel.h>
