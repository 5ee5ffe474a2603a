// Training in bfloat16 once more, with products of pairs as instructions.
#include "training.cpp"
