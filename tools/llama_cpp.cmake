# Of llama.cpp only the library that qsweep calls is built: chat templates, downloads, and models that
# see (llama-common, mtmd) take as long again. CMake reads this right after llama-cpp-python's
# `project()`; a plain variable goes before the cached one that it forces.
set(LLAMA_BUILD_COMMON OFF)
set(LLAVA_BUILD OFF)
