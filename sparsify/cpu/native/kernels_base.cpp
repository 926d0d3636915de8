#define SPARSIFY_KERNELS kernels_base
#include "kernels.h"
