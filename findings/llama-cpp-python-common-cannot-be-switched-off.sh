#!/usr/bin/env bash
# llama-cpp-python: `-DLLAMA_BUILD_COMMON=OFF` is taken without a word and changes nothing.
#
# One would guess that an option of llama.cpp's own CMake files can be given on the command line, as GGML_CUDA is. llama-cpp-python's CMakeLists
# sets this one with CACHE ... FORCE, so the user's value is overwritten before llama.cpp sees it, and the library of llama.cpp's programs is
# compiled for everybody. A file given as CMAKE_PROJECT_llama.cpp_INCLUDE that sets the plain variable prevails, since plain variables hide cached ones.
#
#   seen: asked OFF on the command line: target llama-common is there; by the included file: it is not
#
# Configures only, compiles nothing. Needs cmake and a C++ compiler.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python --no-build-isolation --dest "$folder" llama-cpp-python==0.3.36 2>/dev/null ||
    { "$folder/venv/bin/pip" install -q scikit-build-core && "$folder/venv/bin/pip" download -q --no-deps --no-binary llama-cpp-python \
        --no-build-isolation --dest "$folder" llama-cpp-python==0.3.36; }
tar -xzf "$folder"/llama_cpp_python-0.3.36.tar.gz -C "$folder"
source="$folder/llama_cpp_python-0.3.36"
echo 'set(LLAMA_BUILD_COMMON OFF)' > "$folder/plain.cmake"

has_common() { # the name of a build folder, and arguments of cmake
    local build="$folder/$1"
    shift
    cmake -S "$source" -B "$build" -G "Unix Makefiles" -DLLAVA_BUILD=OFF -DSKBUILD_PLATLIB_DIR="$build/out" "$@" > "$build.log" 2>&1 ||
        { tail -5 "$build.log"; exit 2; }
    make -C "$build" help > "$build.targets"
    grep -qE '^\.\.\. (llama-)?common$' "$build.targets" && echo yes || echo no
}
asked=$(has_common asked -DLLAMA_BUILD_COMMON=OFF)
included=$(has_common included -DCMAKE_PROJECT_llama.cpp_INCLUDE="$folder/plain.cmake")
echo "llama-cpp-python 0.3.36, $(cmake --version | head -1): common compiled with -DLLAMA_BUILD_COMMON=OFF: $asked; by an included file: $included"
[ "$asked" = yes ] && [ "$included" = no ]
