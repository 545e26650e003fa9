# Read by CMake at the head of llama.cpp's own project (CMAKE_PROJECT_<name>_INCLUDE). llama-cpp-python's build sets this option
# in the cache by force, where -D does not reach it; a plain variable in here comes before the cache.
# The "common" library belongs to llama.cpp's programs: libllama does not need it. Nothing here touches the arithmetic.
set(LLAMA_BUILD_COMMON OFF)
