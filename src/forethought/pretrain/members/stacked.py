"""Members of one shape as one model: every parameter has a leading axis K, every linear layer is one batched product.

The parameters of each member are views into the stacked ones, so a member is an ordinary LanguageModel that its own
optimiser moves, that can be measured alone, and that is exported as it is.

Legend: K members, B batch, T time, N = B*T, D width, F width after a product, H heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.rng import derive_seed
from forethought.nn import LanguageModel, Linear, TransformerConfig
from forethought.nn.rotary import Rotation, rotate


class MemberModel(nn.Module):
    """One member: its language model and, where asked for, the projection that looks one token further ahead."""

    def __init__(self, model: LanguageModel, *, ahead: bool) -> None:
        super().__init__()
        self.model = model
        self.ahead = Linear(model.config.hidden_size, model.config.hidden_size, bias=False) if ahead else None
        if self.ahead is not None:
            nn.init.eye_(self.ahead.weight)


class StackedModel(nn.Module):
    """K members as one module; its parameters are [K, ...] under the members' own names, dots written as slashes."""

    def __init__(self, members: Sequence[LanguageModel], *, dropout: float = 0.0, ahead: bool = False) -> None:
        super().__init__()
        self.config: TransformerConfig = members[0].config
        self.dropout = dropout
        # A plain list, so not registered: their parameters are the stacked ones, seen member by member.
        self.members = [MemberModel(model, ahead=ahead) for model in members]
        named = [dict(member.named_parameters()) for member in self.members]
        self.stacked = nn.ParameterDict(
            {
                name.replace(".", "/"): nn.Parameter(torch.stack([own[name] for own in named]).detach())
                for name in named[0]
            }
        )
        self._share()

    @property
    def num_members(self) -> int:
        """How many members there are."""
        return len(self.members)

    def place(self, device: torch.device) -> StackedModel:
        """Move the parameters and let the members see them where they are now."""
        self.to(device)
        for member in self.members:
            member.to(device)
        self._share()
        return self

    def _share(self) -> None:
        for k, member in enumerate(self.members):
            for prefix, owner in member.named_modules():
                for leaf in list(owner._parameters):
                    if owner._parameters[leaf] is not None:
                        name = f"{prefix}.{leaf}" if prefix else leaf
                        setattr(owner, leaf, nn.Parameter(self.stacked[name.replace(".", "/")].detach()[k]))

    def forward(
        self, tokens_KBT: Tensor, *, mask_KBTT: Tensor | None = None, noise: tuple[Sequence[int], int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits_KNV, and those of one token further where the members look ahead.

        `noise` is (seeds of the members, number of the batch), from which dropout is drawn; None: no dropout.
        """
        K, B, T = tokens_KBT.shape
        drop = _Dropout(self.dropout if self.training else 0.0, noise, B * T)
        x_KND = drop(self._embed(tokens_KBT).view(K, B * T, -1))
        rotation = self.members[0].model.rotary(torch.arange(T, device=tokens_KBT.device), x_KND.dtype)
        for layer in range(self.config.num_layers):
            prefix = f"model/blocks/{layer}/"
            x_KND = x_KND + drop(self._attention(prefix, x_KND, (K, B, T), rotation, mask_KBTT))
            x_KND = x_KND + drop(self._mlp(prefix + "mlp/", self._norm(prefix + "mlp_norm/weight", x_KND)))
        x_KND = self._norm("model/norm/weight", x_KND)
        ahead_KNV = self._head(self._linear("ahead", x_KND)) if "ahead/weight" in self.stacked else None
        return self._head(x_KND), ahead_KNV

    def member_state(self, k: int) -> Mapping[str, Tensor]:
        """Return the tensors of one member's language model by name, copied."""
        return {name: tensor.detach().clone() for name, tensor in self.members[k].model.named_parameters()}

    def _embed(self, tokens_KBT: Tensor) -> Tensor:
        table_KVD = self.stacked["model/embedding/weight"]
        offsets_K11 = torch.arange(len(table_KVD), device=tokens_KBT.device)[:, None, None] * table_KVD.shape[1]
        return functional.embedding(tokens_KBT + offsets_K11, table_KVD.flatten(0, 1))

    def _attention(
        self, prefix: str, x_KND: Tensor, shape: tuple[int, int, int], rotation: Rotation, mask: Tensor | None
    ) -> Tensor:
        (K, B, T), config, own = shape, self.config, prefix + "attention/"
        normed_KND = self._norm(prefix + "attention_norm/weight", x_KND)
        heads = {"query": config.num_heads, "key": config.resolved_kv_heads, "value": config.resolved_kv_heads}
        made: dict[str, Tensor] = {}
        for name, count in heads.items():
            each = self._linear(own + name, normed_KND).view(K, B, T, count, config.resolved_head_dim)
            if name != "value":
                if config.qk_norm:
                    each = self._norm(f"{own}{name}_norm/weight", each)
                each = rotate(each, rotation).to(normed_KND.dtype)
            made[name] = each.flatten(0, 1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            made["query"],
            made["key"],
            made["value"],
            attn_mask=None if mask is None else mask.flatten(0, 1)[:, None],
            is_causal=mask is None,
            enable_gqa=config.resolved_kv_heads != config.num_heads,
        )
        return self._linear(own + "output", attended.transpose(1, 2).reshape(K, B * T, -1))

    def _mlp(self, prefix: str, x_KND: Tensor) -> Tensor:
        gate_KNF, up_KNF = self._linear(prefix + "gate", x_KND), self._linear(prefix + "up", x_KND)
        return self._linear(prefix + "down", functional.silu(gate_KNF) * up_KNF)

    def _linear(self, name: str, x_KND: Tensor) -> Tensor:
        weight_KFD = self.stacked[f"{name}/weight"]
        if len(weight_KFD) == 1:  # a member alone takes the plain product, which is faster than a batch of one
            bias = self.stacked[f"{name}/bias"][0] if f"{name}/bias" in self.stacked else None
            return functional.linear(x_KND, weight_KFD[0], bias)
        if f"{name}/bias" in self.stacked:
            return torch.baddbmm(self.stacked[f"{name}/bias"][:, None], x_KND, weight_KFD.mT)
        return torch.bmm(x_KND, weight_KFD.mT)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        scale_KD = self.stacked[name]
        normed = functional.rms_norm(x, (x.shape[-1],), None, self.config.norm_eps)
        return normed * scale_KD.view(len(scale_KD), *[1] * (x.ndim - 2), -1).to(x.dtype)

    def _head(self, x_KND: Tensor) -> Tensor:
        tied = "model/unembedding/weight" not in self.stacked
        weight_KVD = self.stacked["model/embedding/weight" if tied else "model/unembedding/weight"]
        return torch.bmm(x_KND, weight_KVD.mT)


class _Dropout:
    """Dropout whose draws are a function of (member's seed, batch, place in the model), whatever else is batched."""

    def __init__(self, share: float, noise: tuple[Sequence[int], int] | None, num_rows: int) -> None:
        self._share = share if noise is not None else 0.0
        self._noise, self._num_rows, self._place = noise, num_rows, 0

    def __call__(self, x_KND: Tensor) -> Tensor:
        if not self._share or self._noise is None:
            return x_KND
        seeds, batch = self._noise
        self._place += 1
        keep = 1.0 - self._share
        masks = [
            torch.rand(x_KND.shape[1:], generator=_seeded(x_KND.device, seed, batch, self._place), device=x_KND.device)
            for seed in seeds
        ]
        return x_KND * (torch.stack(masks) < keep).to(x_KND.dtype) / keep


def _seeded(device: torch.device, seed: int, batch: int, place: int) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(derive_seed(seed, "pretrain.dropout", batch, place))
