/* fuzz_format.c: libFuzzer's entry into one format, or into all of them. Built once for each name (meson.build here says which); a crash that it finds becomes a
 * file of corpus/NAME. */
#include "contract.h"

#ifndef FUZZ_FORMAT
#error "-DFUZZ_FORMAT=\"name\" is missing"
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    contract_check(FUZZ_FORMAT, data, size);
    return 0;
}
