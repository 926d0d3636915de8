#define SPARSIFY_KERNELS kernels_avx512
#include "kernels.h"
