"""What every component keeps to: the folders are walked, so a new module is tested the moment it exists."""

import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from carrara.autoencoders.scale import LatentScale
from carrara.autoencoders.stored import StoredAutoencoder, load_autoencoder
from carrara.conditions.condition import Latent
from carrara.config import Config, component, kinds, to_toml
from carrara.context import Context
from carrara.generation.model import Model, ModelConfig, build_network, latent_of, load_model
from carrara.tensors import generator
from tiny_encoders import clip_folder

ROOMS = ("autoencoders", "conditions", "denoisers")

# Small forms, so that the tests are quick; a component that is not named here is tested as it comes.
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "autoencoders": {
        "kl": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3},
        "vq": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "codes": 32},
        "fsq": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "latent_channels": 3, "levels": (8, 5, 5)},
        "tiny": {
            "encoder_width": 16,
            "decoder_width": 12,
            "encoder_blocks": (1, 1),
            "decoder_blocks": (1, 1),
        },
    },
    "conditions": {
        "text": {"vocabulary": 300, "length": 12, "width": 16, "depth": 1, "heads": 2},
        "label": {"width": 16},
        "layout": {"width": 16, "paints": 3},
        "size": {"features": 8},
    },
    "denoisers": {
        "unet": {"channels": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 8},
        "dit": {"width": 16, "depth": 2, "heads": 2},
    },
}
CAPTIONS = ["a red disc", "ein rotes Quadrat", "红苹果", "a blue bar, longer than the others"]
SIZE = (32, 48)  # height and width of the pictures that conditions are for


class Words:
    """`conditions.contract.Columns` from lists in memory, a value a picture."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = columns
        self.names = list(columns)
        self.captions = {n.removeprefix("caption_"): n for n in columns if n.startswith("caption_")}

    def values(self, column: str) -> list[Any]:
        return self.columns[column]


PICTURES = torch.randint(0, 256, (5, 3, *SIZE), dtype=torch.uint8, generator=generator(11))
BOXES = [
    f'[{{"label": "{label}", "box": [0.{k}, 0.1, 0.3, 0.5]}}, {{"label": "disc", "box": [0.5, 0.5, 0.4, 0.4]}}]'
    for k, label in enumerate(["disc", "square", "apple", "bar"])
]
DATA = Words(
    caption_en=[*CAPTIONS, None],
    label=["disc", "square", "apple", "bar", None],
    image=list(PICTURES),
    boxes=[*BOXES, None],
    width=[48, 96, 50, 200, 48],
    height=[32, 64, 50, 80, 32],
)
LATENT = Latent(4, 8, 3, 8, lambda image: F.avg_pool2d(image, 8)[:, [0, 1, 2, 0]])
# Four values that differ, by the form in which a condition takes them.
VALUES: dict[str, list[Any]] = {
    "text": CAPTIONS,
    "label": ["disc", "square", "apple", "bar"],
    "picture": list(PICTURES[:4]),
    "boxes": BOXES,
    "size": ["64x48", "96x64", "50x50", '{"original": [30, 30], "crop": [4, 0]}'],
}


def small(room: str, kind: str) -> Any:
    chosen = SMALL[room].get(kind, {})
    if kind == "pretrained_text":
        chosen = {"paths": (clip_folder(),), "length": 20, "pooled": "last"}
    return component(room, kind).Config(**chosen)


def alive(module: nn.Module) -> nn.Module:
    """Every parameter a little away from where it starts: a zero that hides a gradient is none any more."""
    draw = generator(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return module.eval()


def assert_gradients(module: nn.Module, loss: Tensor) -> None:
    """Each parameter moves the loss."""
    module.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
    dead = [n for n, p in learning.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())


EVERY = [pytest.param(room, kind, id=f"{room}-{kind}") for room in ROOMS for kind in kinds(room)]


def test_the_rooms_are_not_empty() -> None:
    assert {"kl"} <= set(kinds("autoencoders"))
    assert {"text"} <= set(kinds("conditions"))
    assert {"unet"} <= set(kinds("denoisers"))


# --- configuration ---


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_a_configuration_survives_its_file(room: str, kind: str) -> None:
    for config in (component(room, kind).Config(), small(room, kind)):
        table = tomllib.loads(to_toml(config))
        assert table["kind"] == kind
        again = component(room, kind).Config.model_validate(table)
        assert again == config
        assert type(again) is type(config)


@pytest.mark.parametrize(("room", "kind"), EVERY)
def test_a_configuration_is_strict_frozen_and_explains_itself(room: str, kind: str) -> None:
    model = component(room, kind).Config
    assert issubclass(model, Config)
    with pytest.raises(ValueError, match="frozen"):
        model().kind = "other"
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        model(no_such_thing=1)
    for name, field in model.model_fields.items():
        assert name == "kind" or (field.description or "").endswith("."), name
    assert inspect.getdoc(component(room, kind)), "the module opens with its idea"
    assert inspect.getdoc(model)


# --- autoencoders ---


@pytest.fixture(params=kinds("autoencoders"))
def autoencoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = small("autoencoders", request.param).build()
    module.kind, module.config = request.param, small("autoencoders", request.param)  # type: ignore[assignment]
    return alive(module)


def images(autoencoder: Any, count: int = 3) -> Tensor:
    side = 4 * autoencoder.factor
    channels = autoencoder.config.image_channels
    return torch.rand(count, channels, side, side + 2 * autoencoder.factor, generator=generator(1)) * 2 - 1


def test_autoencoder_shapes_and_types(autoencoder: Any) -> None:
    image = images(autoencoder)
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            encoding = autoencoder.encode(image)
            latent = encoding.sample(torch.randn_like(encoding.mode()))
            again = autoencoder.decode(latent)
        assert encoding.mode().shape == latent.shape == (3, autoencoder.channels, 4, 6)
        assert encoding.penalty().shape == (3,)
        assert encoding.penalty().min() >= 0
        assert again.shape == image.shape
        assert {x.dtype for x in (encoding.mode(), latent, again, encoding.penalty())} == {torch.float32}
        assert all(x.isfinite().all() for x in (latent, again, encoding.penalty()))


def test_autoencoder_gradients(autoencoder: Any) -> None:
    if not list(autoencoder.parameters()):
        pytest.skip("nothing to train")
    image = images(autoencoder)
    shape = autoencoder.encode(image).mode().shape
    for learning in (False, True):
        out = autoencoder.train(learning)(image, torch.randn(shape, generator=generator(2)))
        assert out.picture.shape == image.shape
        assert out.latent.shape == shape
        assert all(term.ndim == 0 and term.isfinite() for term in out.terms.values())
        terms = torch.stack([torch.zeros(()), *out.terms.values()]).sum()
        assert_gradients(autoencoder, (out.picture - image).square().mean() + terms)
    inner, outer = autoencoder.ends
    everything = [id(p) for p in autoencoder.parameters()]
    assert id(inner) in everything
    assert id(outer) in everything
    assert all(isinstance(value, float) for value in autoencoder.measures().values())


def test_autoencoder_pass_is_encode_and_decode(autoencoder: Any) -> None:
    """What training sees is what use gives: without noise, the same picture."""
    if not list(autoencoder.parameters()):
        pytest.skip("nothing to train")
    image = images(autoencoder)
    with torch.no_grad():
        latent = autoencoder.encode(image).mode()
        out = autoencoder(image, torch.zeros_like(latent))
        torch.testing.assert_close(out.picture, autoencoder.decode(latent), rtol=1e-4, atol=1e-5)


def test_autoencoder_knows_no_batch_and_no_chance(autoencoder: Any) -> None:
    image = images(autoencoder, 5)
    with torch.no_grad():
        latent = autoencoder.encode(image).mode()
        again = autoencoder.decode(latent)
        torch.testing.assert_close(autoencoder.encode(image).mode(), latent, rtol=0, atol=0)
        for k in range(5):
            one = autoencoder.encode(image[k : k + 1]).mode()
            torch.testing.assert_close(one[0], latent[k], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(autoencoder.decode(one)[0], again[k], rtol=1e-4, atol=1e-5)
    assert latent.std(0).max() > 1e-3, "pictures that differ have latents that differ"


def test_autoencoder_starts_from_the_seed(autoencoder: Any) -> None:
    def fresh(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(autoencoder.config.build().state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(fresh(1), fresh(1), strict=True))
    if fresh(1):
        assert not all(torch.equal(a, b) for a, b in zip(fresh(1), fresh(2), strict=True))


def test_autoencoder_on_disk(autoencoder: Any, tmp_path: Path) -> None:
    scale = LatentScale(torch.randn(autoencoder.channels), torch.rand(autoencoder.channels) + 0.5)
    stored = StoredAutoencoder.of(autoencoder, autoencoder.config, 8 * autoencoder.factor, {"made": "today"})
    stored.with_scale(scale).save(tmp_path / "a")
    again = load_autoencoder(tmp_path / "a")
    assert (again.config, again.size, again.hash) == (stored.config, stored.size, stored.hash)
    assert again.passport == {"made": "today"}
    assert again.scale is not None
    torch.testing.assert_close(again.scale.mean, scale.mean, rtol=0, atol=0)
    torch.testing.assert_close(again.scale.std, scale.std, rtol=0, atol=0)
    assert not again.module.training
    image = images(autoencoder)
    with torch.no_grad():
        encoding, before = again.module.encode(image), autoencoder.encode(image)  # type: ignore[operator]
        assert torch.equal(encoding.mode(), before.mode())
        assert torch.equal(again.module.decode(encoding.mode()), autoencoder.decode(before.mode()))  # type: ignore[operator]


def test_autoencoder_refuses_a_size_that_does_not_divide(autoencoder: Any) -> None:
    if autoencoder.factor == 1:
        pytest.skip("every size divides by one")
    odd = torch.zeros(
        1, autoencoder.config.image_channels, autoencoder.factor * 2, autoencoder.factor * 2 + 1
    )
    with pytest.raises(ValueError, match=f"multiples of {autoencoder.factor}"):
        autoencoder.encode(odd)


# --- conditions ---


@pytest.fixture(params=kinds("conditions"))
def condition(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = small("conditions", request.param).learn(DATA, LATENT)
    module.kind, module.given = request.param, VALUES[module.form]  # type: ignore[assignment,index]
    return alive(module)


def test_condition_fills_the_roles_that_it_tells(condition: Any) -> None:
    context = condition(condition.prepare(condition.given, SIZE))
    assert isinstance(context, Context)
    roles = context.roles()
    assert roles.keys() - {"mask"} == {r for r in ("tokens", "vector", "image") if getattr(condition, r)}
    for name, value in roles.items():
        assert value.shape[0] == len(CAPTIONS), name
        assert value.isfinite().all(), name
    if "tokens" in roles:
        assert roles["tokens"].shape[2] == condition.tokens
        assert roles["mask"].shape == roles["tokens"].shape[:2]
        assert roles["mask"].dtype == torch.bool
        assert roles["mask"].any(1).all()
    if "vector" in roles:
        assert roles["vector"].shape == (len(CAPTIONS), condition.vector)
    if "image" in roles:
        height, width = (side // LATENT.factor for side in SIZE)
        assert roles["image"].shape == (len(CAPTIONS), condition.image, height, width)


def test_condition_null_is_the_absent_value(condition: Any) -> None:
    null = condition(condition.prepare([None, None], SIZE)).roles()
    given = condition(condition.prepare([condition.given[0], None], SIZE)).roles()
    assert null.keys() == given.keys()
    for name in null.keys() - {"mask"}:
        if name == "tokens":
            real = given["mask"][1]
            torch.testing.assert_close(given[name][1][real], null[name][1][null["mask"][1]])
        else:
            torch.testing.assert_close(given[name][1], null[name][1])
        assert not torch.allclose(given[name][0].mean(0), null[name][0].mean(0))


def test_condition_gradients(condition: Any) -> None:
    """Of what any caption touches: a row of a table of embeddings moves only where its token is read."""
    if not list(condition.parameters()):
        pytest.skip("nothing to train")
    context = condition(condition.prepare([*condition.given, None], SIZE))
    weights = {
        n: torch.randn(v.shape, generator=generator(5)) for n, v in context.roles().items() if n != "mask"
    }
    assert_gradients(condition, sum((weights[n] * context.roles()[n]).sum() for n in weights))  # type: ignore[arg-type]


def test_condition_knows_no_batch_and_no_chance(condition: Any) -> None:
    """A caption's context is the same alone and beside a longer one, whose padding it then has."""
    with torch.no_grad():
        together = condition(condition.prepare(condition.given, SIZE)).roles()
        for k, value in enumerate(condition.given):
            alone = condition(condition.prepare([value], SIZE)).roles()
            for name, role in alone.items():
                length = role.shape[1] if name in ("tokens", "mask") else None
                mine = together[name][k] if length is None else together[name][k, :length]
                torch.testing.assert_close(mine, role[0], rtol=1e-4, atol=1e-5)
            if "mask" in together:
                assert not together["mask"][k, alone["mask"].shape[1] :].any()


def test_condition_on_disk(condition: Any, tmp_path: Path) -> None:
    from carrara.model_folder import load_into, write_weights

    condition.keep(tmp_path / "kept")
    write_weights(tmp_path / "weights.safetensors", condition.state_dict())
    again = condition.config.restore(tmp_path / "kept", LATENT).eval()
    load_into(again, tmp_path / "weights.safetensors")
    a, b = (c(c.prepare(condition.given, SIZE)).roles() for c in (condition, again))
    assert all(torch.equal(a[name], b[name]) for name in a | b)


def test_text_is_drawn_from_its_languages_by_seed_alone(condition: Any) -> None:
    if condition.kind != "text":
        pytest.skip("has tests of its own")
    columns = {"caption_en": ["a", "b", None, None], "caption_de": ["A", None, "C", None]}
    seeds = [11, 12, 13, 14]
    drawn = condition.draw(columns, seeds, stream=16)
    assert drawn == condition.draw(columns, seeds, stream=16)
    for k in range(4):
        column = {name: [values[k]] for name, values in columns.items()}
        assert condition.draw(column, [seeds[k]], stream=16) == [drawn[k]]
    many = [condition.draw(columns, [s, s + 1, s + 2, s + 3], stream=16) for s in range(0, 8000, 4)]
    for k, allowed in enumerate([{"a", "A", ""}, {"b", ""}, {"C", ""}, {""}]):
        assert {row[k] for row in many} == allowed
    share = sum(row[1] == "" for row in many) / len(many)
    assert share == pytest.approx(condition.config.dropout, abs=0.03)
    english = sum(row[0] == "a" for row in many) / sum(row[0] != "" for row in many)
    assert english == pytest.approx(0.5, abs=0.05)


def test_condition_draws_by_seed_alone(condition: Any) -> None:
    """The same for a picture alone and in any batch; the share without it is as configured."""
    columns: dict[str, Any] = {"mirrored": torch.tensor([False, True, False, True])}
    columns |= {name: DATA.columns[name][:4] for name in condition.config.reads(DATA)}
    seeds = [11, 12, 13, 14]
    if condition.derivations(condition.config.reads(DATA)):
        pytest.skip("draws from what was derived: has tests of its own")

    def prepared(values: Any) -> list[Tensor]:
        return [
            v for v in condition(condition.prepare(values, SIZE)).roles().values() if v.is_floating_point()
        ]

    drawn = condition.draw(columns, seeds, stream=2)
    assert all(map(torch.equal, prepared(drawn), prepared(condition.draw(columns, seeds, stream=2))))
    for k in range(4):
        alone = condition.draw({n: v[k : k + 1] for n, v in columns.items()}, [seeds[k]], stream=2)
        assert all(map(torch.equal, prepared(alone), prepared(drawn[k : k + 1])))
    many = [condition.draw(columns, [s, s + 1, s + 2, s + 3], stream=2) for s in range(0, 1600, 4)]
    share = sum(value is None or value == "" for row in many for value in row) / (4 * len(many))
    assert share == pytest.approx(condition.config.dropout, abs=0.03)


# --- denoisers ---

ROLES = [(None, None), (16, None), (None, 12), (16, 12)]


@pytest.fixture(params=kinds("denoisers"))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def denoiser(kind: str, tokens: int | None, vector: int | None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return alive(small("denoisers", kind).build(channels=4, tokens=tokens, vector=vector))


def inputs(module: Any, tokens: int | None, vector: int | None, b: int = 3) -> tuple[Tensor, Tensor, Context]:
    draw = generator(7)
    side = 4 * module.factor
    context = Context(
        tokens=torch.randn(b, 5, tokens, generator=draw) if tokens else None,
        mask=(torch.arange(5) < torch.tensor([[5], [3], [1]] * b)[:b]) if tokens else None,
        vector=torch.randn(b, vector, generator=draw) if vector else None,
    )
    z = torch.randn(b, 4, side, side + module.factor, generator=draw)
    return z, torch.linspace(0.1, 0.9, b), context


@pytest.mark.parametrize(("tokens", "vector"), ROLES)
def test_denoiser_shapes_types_and_gradients(kind: str, tokens: int | None, vector: int | None) -> None:
    module = denoiser(kind, tokens, vector)
    z, t, context = inputs(module, tokens, vector)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(z, t, context)
    out = module(z, t, context)
    assert out.shape == rough.shape == z.shape
    assert out.dtype == rough.dtype == torch.float32
    assert (out - rough).square().mean().sqrt() < 0.1 * out.std()
    assert_gradients(module, out.square().mean())


@pytest.mark.parametrize(("tokens", "vector"), ROLES)
def test_denoiser_sees_everything_it_is_given(kind: str, tokens: int | None, vector: int | None) -> None:
    module = denoiser(kind, tokens, vector)
    z, t, context = inputs(module, tokens, vector)
    with torch.no_grad():
        out = module(z, t, context)
        others = [module(z + 0.5, t, context), module(z, t * 0.5, context)]
        for name, value in context.roles().items():
            if name != "mask":
                others.append(module(z, t, Context(**{**context.roles(), name: value + 1.0})))
        for other in others:
            assert (out - other).abs().amax((1, 2, 3)).min() > 1e-4


def test_denoiser_does_not_see_what_the_mask_hides(kind: str) -> None:
    module = denoiser(kind, 16, None)
    z, t, context = inputs(module, 16, None)
    assert context.tokens is not None
    assert context.mask is not None
    hidden = torch.where(context.mask[..., None], context.tokens, 1e3)
    with torch.no_grad():
        torch.testing.assert_close(
            module(z, t, Context(tokens=hidden, mask=context.mask)),
            module(z, t, context),
            rtol=1e-4,
            atol=1e-5,
        )
        shown = module(z, t, Context(tokens=hidden, mask=torch.ones_like(context.mask)))
        assert (shown - module(z, t, context))[1:].abs().max() > 1e-3


def test_denoiser_knows_no_batch_and_no_chance(kind: str) -> None:
    module = denoiser(kind, 16, 12)
    z, t, context = inputs(module, 16, 12, b=6)
    with torch.no_grad():
        out = module(z, t, context)
        assert torch.equal(module(z, t, context), out)
        for k in range(6):
            one = Context(**{name: value[k : k + 1] for name, value in context.roles().items()})
            alone = module(z[k : k + 1], t[k : k + 1], one)
            torch.testing.assert_close(alone[0], out[k], rtol=1e-4, atol=1e-5)


def test_denoiser_starts_from_the_seed(kind: str) -> None:
    a, b, c = (list(denoiser(kind, 16, 12, seed).state_dict().values()) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize("encoder", [None, *kinds("conditions")])
def test_a_model_on_disk(kind: str, encoder: str | None, tmp_path: Path) -> None:
    """Every denoiser with every condition: saved, opened, the same estimate."""
    torch.manual_seed(0)
    chosen = {"name": small("conditions", encoder)} if encoder else {}
    config = ModelConfig(denoiser=small("denoisers", kind), conditions=chosen)
    stored = component("autoencoders", "kl").Config(**SMALL["autoencoders"]["kl"])
    autoencoder = StoredAutoencoder.of(stored.build(), stored, 16, {}).with_scale(
        LatentScale(torch.zeros(3), torch.ones(3))
    )
    latent = latent_of(autoencoder)
    conditions = nn.ModuleDict({name: alive(c.learn(DATA, latent)) for name, c in chosen.items()})
    network = alive(build_network(config, conditions, 3))
    model = Model(config, network, conditions, autoencoder, {"seen": 8})
    model.save(tmp_path / "m", {"recipe.toml": "x = 1\n"})
    again = load_model(tmp_path / "m")
    assert (again.config, again.hash, again.passport) == (model.config, model.hash, {"seen": 8})
    assert (tmp_path / "m" / "recipe.toml").read_text() == "x = 1\n"
    z, t = torch.randn(2, *model.latent_shape, generator=generator(1)), torch.tensor([0.2, 0.8])
    rows = [{str(c.column): VALUES[str(c.form)][0] for c in conditions.values()}, {}]
    with torch.no_grad():
        out, same = (m.diffusion.denoise(z, t, m.context(rows)) for m in (model, again))
    assert torch.equal(out, same)
    assert out.std() > 0
