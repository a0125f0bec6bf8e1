# What llama-cpp-python builds beside the library that qsweep calls is left out: it takes longer than the
# library. Read right after its `project()`; a plain variable goes before the cached one that it forces.
set(LLAMA_BUILD_COMMON OFF)
set(LLAVA_BUILD OFF)
