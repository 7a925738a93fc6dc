"""What a generated class declares and defines: the method itself, apart from being a torch optimizer."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from optdsl.runtime.checks import Hyper
from optdsl.runtime.states import Facts, State


class Rule:
    """The declarations and functions of one method; a generated class overrides them.

    The functions get tensors in the dtype that the step computes in (float64 for float64 parameters, else
    float32), with complex parameters as real pairs and `g` negated under `maximize`. They get the options
    of the group, the parameter's own step count `t` (1 in its first step), its `facts`, and `random`, its
    random numbers (None if the rule draws none). Options that are tensors come as floats, but as 0-dim
    float64 tensors if the group is `capturable` (on the parameter's device) or `differentiable`. `t` is an
    int, but a 0-dim float64 tensor on the parameter's device if `capturable`. Host-level states are floats,
    but 0-dim float64 tensors if `capturable` or `differentiable`.
    """

    #: The constructor arguments after `params`, but the flags.
    _hypers: ClassVar[tuple[Hyper, ...]] = ()
    #: All states that any setting of the options may use.
    _states: ClassVar[tuple[State, ...]] = ()
    #: The facts on which host values or taken branches depend: tensors of one foreach call agree in them.
    _bucket_facts: ClassVar[tuple[str, ...]] = ()
    #: False for a rule that sees a tensor as a matrix or as filters: complex and sharded ones are then rejected.
    _elementwise: ClassVar[bool] = True
    #: Whether the rule draws random numbers; the group then holds a `seed`.
    _random: ClassVar[bool] = False
    #: Why `capturable=True` cannot be had, or None.
    _not_capturable: ClassVar[str | None] = None
    #: Whether the update functions are generators that yield `Joint` requests.
    _joint: ClassVar[bool] = False
    #: Whether `_update_foreach` may modify the tensors of `p` and of the lists in `state` in place.
    _foreach_inplace: ClassVar[bool] = True

    #: How a tensor that is cut among processes takes a step: by "local" parts, by parts with "reduced" values that
    #: are put together, or "whole". None if that is not known.
    _shards: ClassVar[str | None] = None
    #: Whether what `eval:` says can be told of a part of a tensor, and whether some state begins with a reduction.
    _view_shards: ClassVar[bool] = True
    _starts_from_reductions: ClassVar[bool] = False

    #: Whether the step branches on the learning rate: in a tensor it may then not be left to a device.
    _branches_on_lr: ClassVar[bool] = False

    #: Whether the step divides by the learning rate, which may then not be turned down to 0.
    _divides_by_lr: ClassVar[bool] = False

    #: Whether a state begins as something that the gradient says; one that is scaled must not get there.
    _starts_from_gradient: ClassVar[bool] = False

    #: The native kernels, or None, and then why there are none.
    _native: ClassVar[Any] = None
    _no_kernels: ClassVar[str] = "it was compiled for the backend 'torch' alone"

    #: `_states` by key, and the keys of those that are inputs.
    _specs: ClassVar[dict[str, State]] = {}
    _inputs: ClassVar[tuple[str, ...]] = ()
    #: Where the parameter and its states draw if they are rounded at random; rules draw at sites from 0 on.
    _sites: ClassVar[dict[str, int]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Indexes the declared states."""
        super().__init_subclass__(**kwargs)
        cls._specs = {spec.key: spec for spec in cls._states}
        elements = [spec.key for spec in cls._states if spec.level == "element" and not spec.given]
        cls._sites = {key: 4095 - k for k, key in enumerate(("p", *elements))}
        cls._inputs = tuple(spec.key for spec in cls._states if spec.given)

    @staticmethod
    def _live(group: Mapping[str, Any], facts: Facts) -> tuple[str, ...]:
        """Keys of the states that the branches taken with these options and facts use."""
        return ()

    @staticmethod
    def _wanted(group: Mapping[str, Any], t: Any, facts: Facts) -> tuple[str, ...]:
        """Keys of the inputs that this step reads."""
        return ()

    #: What stands for a parameter while the model is evaluated, from (p, state, group, t, facts); `t` counts the last
    #: step. None for a rule without such a view.
    _view: ClassVar[Any] = None

    @staticmethod
    def _initial(key: str, p: Tensor, g: Tensor, group: Mapping[str, Any], facts: Facts) -> float | Tensor:
        """Value of a state before the first step that uses it: a number, or a tensor broadcast to it."""
        return 0.0

    @staticmethod
    def _kernel(
        group: Mapping[str, Any], t: Any, facts: Facts, state: Mapping[str, Any]
    ) -> tuple[int, tuple[Any, ...], tuple[Any, ...]]:
        """Which plan of `_native` a step follows, the numbers its kernel takes, and the new host states.

        `state` are the host states. `t`, options and states are numbers, or float64 tensors where steps are counted
        on a device: 0-dim ones for options, `t` and states with an entry for each of several parameters.
        """
        raise NotImplementedError

    @staticmethod
    def _library(
        p: list[Tensor], state: dict[str, Any], group: Mapping[str, Any], t: Any, facts: Facts
    ) -> None:
        """What kernels leave to torch, for a list of parameters as `_update_foreach` takes it.

        Takes what they hand over out of `state`, and puts there what they get; modifies none of the tensors. `p` only
        tells shapes, types and device, those of matrices.
        """
        raise NotImplementedError

    @staticmethod
    def _update(p: Any, g: Any, state: Any, group: Any, t: Any, facts: Any, random: Any) -> Any:
        """The new value of one parameter; the new values of its states are assigned to `state[key]`.

        Modifies none of the tensors it is given. A generator if `_joint`.
        """
        raise NotImplementedError

    @staticmethod
    def _update_foreach(p: Any, g: Any, state: Any, group: Any, t: Any, facts: Any, random: Any) -> Any:
        """The same for a list of parameters that agree in device, dtype, t, host states and `_bucket_facts`.

        `p`, `g`, `random` and the states are lists, but host- and group-level states one value for all;
        `facts` are those of the first. If `_foreach_inplace`, `p` and the listed states may be modified in
        place.
        """
        raise NotImplementedError

    @staticmethod
    def _update_sharded(p: Any, g: Any, state: Any, group: Any, t: Any, facts: Any, random: Any) -> Any:
        """The same for parts of tensors: a generator that yields every reduction, or several in a tuple.

        It is sent what they come to over whole tensors: lists, or one tensor where a reduction goes over several.
        `facts` are those of whole tensors. Modifies nothing in place.
        """
        raise NotImplementedError
