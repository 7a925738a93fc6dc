"""Classes as the compiler would write them, by hand: the runtime is tested without the compiler.

`AdamW` has the constructor of a generated class; the others shorten it.
"""

import torch

from optdsl.runtime import Hyper, Joint, Optimizer, State, as_matrix, col_mean, host, row_mean

_ADAM_HYPERS = (
    Hyper("lr", "float", "(0, inf)"),
    Hyper("betas", "float", "[0, 1)", parts=("beta1", "beta2")),
    Hyper("eps", "float", "[0, inf)"),
    Hyper("weight_decay", "float", "[0, inf)"),
)


class AdamW(Optimizer):
    """Adam with decoupled weight decay; bool option, state that only one branch uses."""

    _shards = "local"
    _hypers = (Hyper("lr", "float", "[0, inf)"), *_ADAM_HYPERS[1:], Hyper("amsgrad", "bool"))
    _states = (
        State("exp_avg", "element"),
        State("exp_avg_sq", "element"),
        State("max_exp_avg_sq", "element"),
    )

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, amsgrad=False, *,
        foreach=None, maximize=False, capturable=False, differentiable=False, fused=None,
    ):  # fmt: skip
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        super().__init__(
            params, options, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused,
        )  # fmt: skip

    @staticmethod
    def _live(group, facts):
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        p = p * (1.0 - lr * group["weight_decay"])
        m = beta1 * state["exp_avg"] + (1.0 - beta1) * g
        v = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * g * g
        state["exp_avg"], state["exp_avg_sq"] = m, v
        if group["amsgrad"]:
            v = state["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        c1 = 1.0 - host.pow_(beta1, t)
        c2 = 1.0 - host.pow_(beta2, t)
        return p - host.div(lr, c1) * m / ((v / c2).sqrt() + eps)

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        torch._foreach_mul_(p, 1.0 - lr * group["weight_decay"])
        m, v = state["exp_avg"], state["exp_avg_sq"]
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, torch._foreach_mul(g, 1.0 - beta1))
        torch._foreach_mul_(v, beta2)
        scaled = torch._foreach_mul(g, 1.0 - beta2)
        torch._foreach_add_(v, torch._foreach_mul(scaled, g))
        if group["amsgrad"]:
            torch._foreach_maximum_(state["max_exp_avg_sq"], v)
            v = state["max_exp_avg_sq"]
        denominator = list(torch._foreach_div(v, 1.0 - host.pow_(beta2, t)))
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, eps)
        step = torch._foreach_mul(m, host.div(lr, 1.0 - host.pow_(beta1, t)))
        torch._foreach_sub_(p, torch._foreach_div(step, denominator))
        return p


class Sgd(Optimizer):
    """SGD as in torch: its buffer begins as the first gradient; a number decides about the branch."""

    _hypers = (
        Hyper("lr", "float", "[0, inf)"),
        Hyper("momentum", "float", "[0, inf)"),
        Hyper("dampening", "float"),
        Hyper("weight_decay", "float", "[0, inf)"),
        Hyper("nesterov", "bool"),
    )
    _states = (State("momentum_buffer", "element"),)

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, **flags
    ):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening}
        options |= {"weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, options, **flags)

    @staticmethod
    def _live(group, facts):
        return ("momentum_buffer",) if group["momentum"] > 0 else ()

    @staticmethod
    def _initial(key, p, g, group, facts):
        # so that momentum * b + (1 - dampening) * g is g + weight_decay * p
        first = g + group["weight_decay"] * p
        return first * host.div(group["dampening"], group["momentum"])

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        g = g + group["weight_decay"] * p
        if group["momentum"] > 0:
            b = group["momentum"] * state["momentum_buffer"] + (1.0 - group["dampening"]) * g
            state["momentum_buffer"] = b
            g = g + group["momentum"] * b if group["nesterov"] else b
        return p - group["lr"] * g

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        g = torch._foreach_add(g, torch._foreach_mul(p, group["weight_decay"]))
        if group["momentum"] > 0:
            b = state["momentum_buffer"]
            torch._foreach_mul_(b, group["momentum"])
            torch._foreach_add_(b, torch._foreach_mul(g, 1.0 - group["dampening"]))
            g = torch._foreach_add(g, torch._foreach_mul(b, group["momentum"])) if group["nesterov"] else b
        torch._foreach_sub_(p, torch._foreach_mul(g, group["lr"]))
        return p


class NAdam(Optimizer):
    """NAdam: a product of numbers is a host-level state."""

    _hypers = (*_ADAM_HYPERS, Hyper("momentum_decay", "float", "[0, inf)"))
    _states = (State("exp_avg", "element"), State("exp_avg_sq", "element"), State("mu_product", "host"))

    def __init__(
        self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3, **flags
    ):
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
        }
        super().__init__(params, options, **flags)

    @staticmethod
    def _live(group, facts):
        return ("exp_avg", "exp_avg_sq", "mu_product")

    @staticmethod
    def _initial(key, p, g, group, facts):
        return 1.0 if key == "mu_product" else 0.0

    @staticmethod
    def _numbers(state, group, t):
        beta1, beta2 = group["betas"]
        psi = group["momentum_decay"]
        mu = beta1 * (1.0 - 0.5 * host.pow_(0.96, t * psi))
        mu_next = beta1 * (1.0 - 0.5 * host.pow_(0.96, (t + 1) * psi))
        product = state["mu_product"] = state["mu_product"] * mu
        on_m = host.div(mu_next, 1.0 - product * mu_next)
        on_g = host.div(1.0 - mu, 1.0 - product)
        return on_m, on_g, 1.0 - host.pow_(beta2, t)

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        beta1, beta2 = group["betas"]
        on_m, on_g, c2 = NAdam._numbers(state, group, t)
        g = g + group["weight_decay"] * p
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1.0 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * g * g
        return p - group["lr"] * (on_m * m + on_g * g) / ((v / c2).sqrt() + group["eps"])

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        return looped(NAdam._update, p, g, state, group, t, facts, random)


class Lamb(Optimizer):
    """LAMB with a tensor-level state: the mean of the trust ratios, which scales the step."""

    _hypers = _ADAM_HYPERS
    _states = (State("exp_avg", "element"), State("exp_avg_sq", "element"), State("trust", "tensor"))

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, **flags):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, **flags)

    @staticmethod
    def _live(group, facts):
        return ("exp_avg", "exp_avg_sq", "trust")

    @staticmethod
    def _initial(key, p, g, group, facts):
        return 1.0 if key == "trust" else 0.0

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        beta1, beta2 = group["betas"]
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1.0 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1.0 - beta2) * g * g
        c1, c2 = 1.0 - host.pow_(beta1, t), 1.0 - host.pow_(beta2, t)
        u = m / c1 / ((v / c2).sqrt() + group["eps"]) + group["weight_decay"] * p
        pn, un = (p * p).sum().sqrt(), (u * u).sum().sqrt()
        ratio = torch.where((pn > 0) & (un > 0), pn / torch.where(un > 0, un, 1.0), 1.0)
        trust = state["trust"] = 0.5 * state["trust"] + 0.5 * ratio
        return p - group["lr"] * trust * u

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        return looped(Lamb._update, p, g, state, group, t, facts, random)


class Factored(Optimizer):
    """Second moments by rows and columns for matrices, by element for the rest: routed by shape."""

    _hypers = (
        Hyper("lr", "float", "[0, inf)"),
        Hyper("beta2", "float", "[0, 1)"),
        Hyper("weight_decay", "float", "[0, inf)"),
    )
    _states = (State("row_var", "rows"), State("col_var", "cols"), State("variance", "element"))
    _bucket_facts = ("ndim",)
    _elementwise = False

    def __init__(self, params, lr=1e-2, beta2=0.9, weight_decay=0.01, **flags):
        super().__init__(params, {"lr": lr, "beta2": beta2, "weight_decay": weight_decay}, **flags)

    @staticmethod
    def _live(group, facts):
        return ("row_var", "col_var") if facts.ndim >= 2 else ("variance",)

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        beta2 = group["beta2"]
        if facts.ndim >= 2:
            r = state["row_var"] = beta2 * state["row_var"] + (1.0 - beta2) * row_mean(g * g)
            c = state["col_var"] = beta2 * state["col_var"] + (1.0 - beta2) * col_mean(g * g)
            v = r * c / r.mean()
        else:
            v = state["variance"] = beta2 * state["variance"] + (1.0 - beta2) * g * g
        p = p * (1.0 - group["lr"] * group["weight_decay"])
        return p - group["lr"] * g / (v.sqrt() + 1e-8)

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        return looped(Factored._update, p, g, state, group, t, facts, random)


class DAdapt(Optimizer):
    """A distance estimate per group, from sums over the group (in the manner of D-Adaptation)."""

    _shards = "local"
    _hypers = (Hyper("lr", "float", "[0, inf)"), Hyper("d0", "float", "(0, inf)"))
    _states = (State("s", "element"), State("origin", "element"), State("d", "group"), State("seen", "group"))
    _joint = True

    def __init__(self, params, lr=1.0, d0=1e-3, **flags):
        super().__init__(params, {"lr": lr, "d0": d0}, **flags)

    @staticmethod
    def _live(group, facts):
        return ("s", "origin", "d", "seen")

    @staticmethod
    def _initial(key, p, g, group, facts):
        return p if key == "origin" else group["d0"] if key == "d" else 0.0

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        s = state["s"] = state["s"] + g
        dot = yield Joint("sum", "group", 0, g * (state["origin"] - p))
        norm = yield Joint("sum", "group", 1, s.abs())
        state["seen"] = state["seen"] + dot
        d = state["d"] = torch.maximum(state["d"], state["seen"] / (norm + 1e-12))
        return p - group["lr"] * d * g

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        torch._foreach_add_(state["s"], g)
        away = torch._foreach_mul(torch._foreach_sub(state["origin"], p), g)
        dot = yield Joint("sum", "group", 0, away)
        norm = yield Joint("sum", "group", 1, torch._foreach_abs(state["s"]))
        state["seen"] = state["seen"] + dot
        state["d"] = torch.maximum(state["d"], state["seen"] / (norm + 1e-12))
        torch._foreach_sub_(p, torch._foreach_mul(g, group["lr"] * state["d"]))
        return p


class ClippedSgd(Optimizer):
    """Momentum on gradients whose joint norm over everything is clipped."""

    _shards = "local"
    _hypers = (
        Hyper("max_norm", "float", "(0, inf)"),
        Hyper("lr", "float", "[0, inf)"),
        Hyper("momentum", "float", "[0, 1)"),
    )
    _states = (State("momentum_buffer", "element"),)
    _joint = True

    def __init__(self, params, max_norm=1.0, lr=1e-2, momentum=0.9, **flags):
        super().__init__(params, {"max_norm": max_norm, "lr": lr, "momentum": momentum}, **flags)

    @staticmethod
    def _live(group, facts):
        return ("momentum_buffer",)

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        norm = (yield Joint("sum", "all", 0, g * g)).sqrt()
        g = g * (group["max_norm"] / (norm + 1e-6)).clamp(max=1.0)
        b = state["momentum_buffer"] = group["momentum"] * state["momentum_buffer"] + g
        return p - group["lr"] * b

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        b = state["momentum_buffer"]
        torch._foreach_mul_(b, group["momentum"])  # in place before the meeting: the base must bear it
        norm = (yield Joint("sum", "all", 0, torch._foreach_mul(g, g))).sqrt()
        scale = (group["max_norm"] / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_add_(b, torch._foreach_mul(g, scale))
        torch._foreach_sub_(p, torch._foreach_mul(b, group["lr"]))
        return p


class Noisy(Optimizer):
    """SGD with noise."""

    _shards = "local"
    _hypers = (Hyper("lr", "float", "[0, inf)"), Hyper("sigma", "float", "[0, inf)"))
    _random = True

    def __init__(self, params, lr=1e-2, sigma=0.1, *, seed=0, **flags):
        super().__init__(params, {"lr": lr, "sigma": sigma}, seed=seed, **flags)

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        return p - group["lr"] * (g + group["sigma"] * random.normal(0))

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        return [_update_noisy(*each, group) for each in zip(p, g, random, strict=True)]


def _update_noisy(p, g, random, group):
    return Noisy._update(p, g, {}, group, 0, None, random)


class Chooser(Optimizer):
    """All kinds of options, states in foreign dtypes, states that pass on their tensors, a flag refused."""

    _hypers = (
        Hyper("mode", "choice", choices=("l2", "sign")),
        Hyper("every", "int", "[1, 20]"),
        Hyper("centred", "bool"),
        Hyper("gain", "float"),
    )
    _states = (State("wide", "element", "f32"), State("narrow", "element", "bf16"), State("older", "element"),
               State("old", "element"), State("gram", "rows, rows", "f64"))  # fmt: skip
    _elementwise = False
    _not_capturable = "`every` needs the step count on the host"

    def __init__(self, params, mode="l2", every=2, centred=False, gain=1e-2, **flags):
        options = {"mode": mode, "every": every, "centred": centred, "gain": gain}
        super().__init__(params, options, **flags)

    @staticmethod
    def _live(group, facts):
        return ("wide", "narrow", "older", "old", "gram")

    @staticmethod
    def _update(p, g, state, group, t, facts, random):
        state["older"], state["old"] = state["old"], p  # both shift by one step
        state["wide"] = 0.9 * state["wide"] + g
        state["narrow"] = 0.9 * state["narrow"] + g
        if (t - 1) % group["every"] == 0:
            matrix = as_matrix(g)
            state["gram"] = state["gram"] + (matrix @ matrix.mT)
        u = g.sign() if group["mode"] == "sign" else g
        return p - group["gain"] * u

    @staticmethod
    def _update_foreach(p, g, state, group, t, facts, random):
        new = []
        for i in range(len(p)):
            own = {key: column[i] for key, column in state.items()}
            new.append(Chooser._update(p[i], g[i], own, group, t, facts, random))
            for key in state:
                state[key][i] = own[key]
        return new


def looped(update, p, g, state, group, t, facts, random):
    """A foreach update that takes one tensor after the other, and nothing in place."""
    columns = {key: list(column) for key, column in state.items() if isinstance(column, list)}
    shared = {key: value for key, value in state.items() if key not in columns}
    new = []
    for i in range(len(p)):
        own = {**shared, **{key: column[i] for key, column in columns.items()}}
        new.append(update(p[i], g[i], own, group, t, facts, None))
        for key in columns:
            columns[key][i] = own[key]
    state.update({key: columns.get(key, own[key]) for key in own})
    return new


ALL = (AdamW, Sgd, NAdam, Lamb, Factored, DAdapt, ClippedSgd, Noisy, Chooser)
