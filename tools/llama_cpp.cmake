# Of llama.cpp only the library that qsweep calls is built: chat templates, downloads, and models that
# see (llama-common, mtmd) take as long again. CMake reads this right after llama-cpp-python's
# `project()`; a plain variable goes before the cached one that it forces.
set(LLAMA_BUILD_COMMON OFF)
set(LLAVA_BUILD OFF)
# Its kernels for AMX end the process on some CPUs that have it
# (https://github.com/ggml-org/llama.cpp/issues/20824); those for AVX-512 are there, too.
include(CheckCXXCompilerFlag)
foreach(feature int8 tile bf16)
  check_cxx_compiler_flag(-mno-amx-${feature} KNOWS_AMX_${feature})
  if(KNOWS_AMX_${feature})
    add_compile_options(-mno-amx-${feature})
  endif()
endforeach()
