// TensorRT's log.
#pragma once

namespace toprl {

// One line at level error; goes nowhere before the library was registered with TensorRT.
void log_error(char const* text);

}  // namespace toprl
