// A device for tests: it is not the CPU, has memory of its own, and keeps CUDA's rule that all the
// tensors of an operation lie on one device. Code that forgets to move one fails here as on a GPU.
//
// It is a PrivateUse1 backend, torch's slot for devices that it does not know. An operation copies
// its tensors to the CPU, computes there and copies the results back: values are the CPU's, and
// nothing is learnt about speed.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

using at::IntArrayRef, at::Layout, at::MemoryFormat, at::ScalarType, at::Tensor;
using c10::Device, c10::Stream;
using std::optional;

namespace {

constexpr auto kStandIn = c10::DeviceType::PrivateUse1;
const Device kDevice(kStandIn, 0);  // there is one

// Memory.

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &c10::free_cpu, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kStandIn, &memory);

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(IntArrayRef size, optional<ScalarType> dtype, optional<Layout>, optional<Device>,
             optional<bool>, optional<MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<ScalarType> dtype,
                     optional<Layout>, optional<Device>, optional<bool>) {
  const ScalarType type = c10::dtype_or_default(dtype);
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, type);
}

// The same memory as a tensor of the CPU, for those alone that move data between the devices.
Tensor seen_by_cpu(const Tensor& x) {
  if (x.is_cpu()) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  seen_by_cpu(to).copy_(seen_by_cpu(from));
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  return copy_from(from, to.resize_(from.sizes()), false);
}

at::Scalar item(const Tensor& x) { return seen_by_cpu(x).item(); }

// Random numbers: a generator of this device draws those of a CPU generator with the same seed.

struct Generator final : c10::GeneratorImpl {
  at::Generator cpu;
  explicit Generator(at::Generator cpu) : GeneratorImpl(kDevice, kKeys), cpu(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override { return new Generator(cpu.clone()); }
};

// Operations.

// CUDA's rule: tensors and the generator are on one device. Exempt are single numbers of the CPU,
// but not in a list of tensors, and tensors that index another: these come as optional tensors.
void check_one_device(const c10::OperatorHandle& op, at::ArrayRef<c10::IValue> arguments) {
  bool here = false, elsewhere = false;
  const auto note = [&](Device device) { (device == kDevice ? here : elsewhere) = true; };
  for (const auto& argument : arguments) {
    if (argument.isTensor()) {
      const Tensor& x = argument.toTensor();
      if (x.defined() && (x.device() == kDevice || x.dim())) note(x.device());
    } else if (argument.isTensorList()) {
      for (const Tensor& x : argument.toTensorVector()) note(x.device());
    } else if (argument.isGenerator()) {
      note(argument.toGenerator().device());
    }
  }
  TORCH_CHECK(!(here && elsewhere), "Expected all tensors to be on the same device, but found at ",
              "least two devices, ", kDevice, " and cpu, in ", op.operator_name());
}

void compute_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  check_one_device(op, torch::jit::last(*stack, count));
  for (auto argument = stack->end() - count; argument != stack->end(); ++argument)
    if (argument->isGenerator()) *argument = argument->toGenerator().get<Generator>()->cpu;
  at::native::cpu_fallback(op, stack);
}

// Which fused kernel computes attention: none, it is a sequence of other operations.
int64_t attention_kernel(const Tensor&, const Tensor&, const Tensor&, const optional<Tensor>&,
                         double, bool, optional<double>, bool) {
  return 0;
}

auto on_cpu() { return torch::CppFunction::makeFromBoxedFunction<&compute_on_cpu>(); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, all) { all.fallback(on_cpu()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, ops) {
  ops.impl("empty.memory_format", empty);
  ops.impl("empty_strided", empty_strided);
  ops.impl("resize_", at::native::resize_);
  ops.impl("_copy_from", copy_from);
  ops.impl("_copy_from_and_resize", copy_from_and_resize);
  ops.impl("_local_scalar_dense", item);
  // A result that shares the memory of its argument cannot go over the CPU.
  ops.impl("view", at::native::view);
  ops.impl("as_strided", at::native::as_strided_tensorimpl);
  ops.impl("_reshape_alias", at::native::_reshape_alias);
  ops.impl("unfold", at::native::unfold);
  // Torch would look for a kernel of this device in the first two, and warn of the last.
  ops.impl("convolution", on_cpu());
  ops.impl("convolution_backward", on_cpu());
  ops.impl("mse_loss", on_cpu());
  ops.impl("_fused_sdp_choice", attention_kernel);
}

// Autocast, by CUDA's lists of operations.
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, all) {
  all.fallback(torch::CppFunction::makeFallthrough());
}
#define IN_HALF(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define IN_FULL(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
#define IN_FULL_BY_DTYPE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
#define IN_WIDEST(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(IN_HALF)
  AT_FORALL_FP32(IN_FULL)
  AT_FORALL_FP32_SET_OPT_DTYPE(IN_FULL_BY_DTYPE)
  AT_FORALL_PROMOTE(IN_WIDEST)
}

// Answers to torch's questions: there is one device, and one stream that never needs waiting for.

const Stream kStream(Stream::DEFAULT, kDevice);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kStandIn> {
  Device getDevice() const override { return kDevice; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Stream getStream(Device) const noexcept override { return kStream; }
  Stream exchangeStream(Stream) const noexcept override { return kStream; }
  void record(void**, const Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  Hooks() { at::RegisterPrivateUse1HooksInterface(this); }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<Generator>(at::detail::createCPUGenerator());
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DataPtr larger = memory.allocate(bytes);
    memory.copy_data(larger.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(larger));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
Hooks hooks;

}  // namespace
