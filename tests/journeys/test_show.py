"""`carrara show`: each lesson in each of its forms, what its numbers say, and what it answers to bad input."""

import pytest
import torch
from PIL import Image
from torch import nn

import carrara as package
from carrara.denoisers import unet
from carrara.diffusion.ddpm import DDPM
from carrara.diffusion.samplers import SAMPLERS
from carrara.diffusion.schedules import SCHEDULES
from carrara.errors import UserError
from carrara.generation.model import Model, ModelConfig, build_network
from carrara.generation.sample import Settings, denoise, generate
from carrara.lessons.forward import both_ways, forward
from carrara.lessons.output import Exhibit, Lesson
from carrara.lessons.reverse import reverse
from carrara.lessons.samplers import Result, cost, samplers, within
from carrara.tensors import PictureNoise, from_pixels
from carrara.training.recipe import Pixels
from conftest import Command, Trained


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A flow in pixels whose untrained network says something all the same."""
    torch.manual_seed(0)
    denoiser = unet.Config(channels=8, multipliers=(1,), blocks=1, attention=(), head_width=8)
    config = ModelConfig(denoiser=denoiser)
    network = build_network(config, nn.ModuleDict(), 3)
    nn.init.normal_(network.conv_out.weight, std=0.05)  # type: ignore[union-attr, arg-type]
    made = Model(config, network.eval(), nn.ModuleDict(), Pixels(size=16).autoencoder(), {})
    path = tmp_path_factory.mktemp("model") / "flow"
    made.save(path)
    opened = package.load(path)
    assert isinstance(opened, Model)
    return opened


def finish(lesson: Lesson) -> Exhibit:
    """Its exhibit; the fractions on the way rise from 0 to 1."""
    fractions = []
    while True:
        try:
            fractions.append(next(lesson).fraction)
        except StopIteration as end:
            assert fractions == sorted(fractions)
            assert 0 < fractions[0] <= fractions[-1] <= 1
            found: Exhibit = end.value
            return found


def picture() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_the_chain_is_the_lectures() -> None:
    image = from_pixels(picture())
    lecture = DDPM.linear().forward(image, PictureNoise(4, [0]))
    pairs = both_ways(image, SCHEDULES["linear"](), 4)
    assert torch.equal(next(pairs).chain, image)
    for pair, x in zip(pairs, lecture, strict=True):
        torch.testing.assert_close(pair.chain, x.to(pair.chain.dtype), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_both_ways_have_the_noise_that_the_schedule_says(name: str) -> None:
    image = from_pixels(picture())
    for pair in both_ways(image, SCHEDULES[name](), 0):
        if pair.n % 100 == 0 and pair.n:
            for z in (pair.chain, pair.leap):
                noise = (z - pair.at.alpha * image).std() / pair.at.sigma
                assert noise == pytest.approx(1, abs=0.06)  # of 3072 numbers: four standard errors
            assert not torch.equal(pair.chain, pair.leap)


def test_the_forward_process_as_a_file_of_each_form(carrara: Command) -> None:
    Image.linear_gradient("L").convert("RGB").save(carrara.folder / "mine.jpg")
    for form in ("png", "gif", "html"):
        done = carrara("show", "forward", "mine.jpg", "--out", f"made/f.{form}", "--size", 32, "--columns", 5)
        assert (done.status, done.out) == (0, f"made/f.{form}\n"), done.err
    with (
        Image.open(carrara.folder / "made/f.png") as still,
        Image.open(carrara.folder / "made/f.gif") as film,
    ):
        assert still.width > 5 * 96
        assert film.n_frames == 40  # type: ignore[attr-defined]
    page = (carrara.folder / "made/f.html").read_text()
    assert "data:image/gif;base64," in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert not list((carrara.folder / "made").glob("*.part"))


def test_another_seed_shows_other_noise_and_the_same_seed_the_same() -> None:
    one, again, other = (forward(picture(), seed=seed).still.tobytes() for seed in (0, 0, 1))
    assert one == again != other


def test_all_schedules_are_drawn(carrara: Command) -> None:
    for form in ("png", "html"):
        done = carrara("show", "schedules", "--out", f"s.{form}")
        assert done.status == 0, done.err
    page = (carrara.folder / "s.html").read_text()
    assert page.count("<svg") == 3
    for name in SCHEDULES:
        assert page.count(f"<title>{name}</title>") >= 3, name
    with Image.open(carrara.folder / "s.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_the_reverse_process_ends_in_the_picture_that_sample_makes(model: Model) -> None:
    settings = Settings(seed=3, steps=8, sampler="ancestral", guidance=1)
    exhibit = finish(reverse(model, "", settings, columns=4))
    made = generate(model, [{}], settings)[0].permute(1, 2, 0).contiguous().numpy()
    large = Image.fromarray(made).resize((96, 96), Image.Resampling.NEAREST)
    assert large.getextrema() != tuple([(low, low) for low, _ in large.getextrema()])
    frames = [
        exhibit.still.crop((x, y, x + 96, y + 96)) for x in range(exhibit.still.width - 95) for y in (37,)
    ]
    assert any(frame.tobytes() == large.tobytes() for frame in frames)  # the last of the row of z
    assert len(exhibit.film) == 9


def test_a_sampler_that_goes_back_up_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="goes back up"):
        finish(reverse(model, "", Settings(steps=12, sampler="restart")))


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_gets_as_many_steps_as_its_evaluations_allow(name: str, model: Model) -> None:
    schedule = model.diffusion.schedule
    found = within(name, 13, "uniform", schedule)
    assert found.evaluations <= 13 < cost(name, found.steps + 1, "uniform", schedule).evaluations
    calls = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(1))
    for _ in denoise(model, [{}], [0], Settings(steps=found.steps, sampler=name, grid="uniform")):
        pass
    hook.remove()
    assert len(calls) == found.evaluations


def test_which_samplers_add_noise() -> None:
    flow = SCHEDULES["flow"]()
    noisy = {name for name in SAMPLERS if cost(name, 4, "uniform", flow).noisy}
    assert {"ancestral", "euler_ancestral", "dpmpp_sde", "consistency"} <= noisy
    assert not noisy & {"ddim", "euler", "heun", "dpm2", "dpmpp_2m", "unipc", "deis", "lms", "plms"}


def test_more_evaluations_come_nearer_to_the_reference(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Result] = []
    real = Result.__init__
    monkeypatch.setattr(Result, "__init__", lambda self, *a: (real(self, *a), seen.append(self))[0])
    settings = Settings(grid="uniform")
    exhibit = finish(samplers(model, "", settings, evaluations=[3, 24], names=("ddim", "ancestral"), count=3))
    few, many, *noisy = seen
    assert 0 < many.distance < few.distance / 3
    assert [result.cost.noisy for result in noisy] == [True, True]
    assert [head for head, _ in exhibit.sections] == ["Distance to the reference", "In numbers"]
    table = exhibit.sections[1][1]
    assert f"{few.distance:.1f} in 3 steps" in table
    assert f"{noisy[0].distance:.1f} in" not in table  # where noise is added there is nothing to arrive at


def test_the_lessons_of_a_model_as_commands(carrara: Command, trained: Trained) -> None:
    folder = trained.diffusion
    few = ["--steps", 4, "--columns", 3]
    done = carrara("show", "reverse", folder, "red disc", "--out", "r.gif", *few)
    assert done.status == 0, done.err
    with Image.open(carrara.folder / "r.gif") as film:
        assert film.n_frames == 5  # type: ignore[attr-defined]
    few = ["--evaluations", "2,4", "--samplers", "ddim,heun", "--count", 1]
    done = carrara("show", "samplers", folder, "red disc", "--out", "s.html", *few)
    assert done.status == 0, done.err
    page = (carrara.folder / "s.html").read_text()
    assert "red disc" in page
    assert "<svg" in page


@pytest.fixture
def bad_folder(carrara: Command, model: Model) -> Command:
    """A folder with a picture, a text and a model without conditions in it."""
    Image.new("RGB", (9, 9), "red").save(carrara.folder / "red.png")
    (carrara.folder / "words.png").write_text("no picture")
    (carrara.folder / "file").write_text("")
    model.save(carrara.folder / "flow")
    return carrara


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("forward red.png --out f.jpg", "expected a name that ends in .png, .gif or .html"),
        ("forward red.png --out f", "expected a name that ends in .png, .gif or .html"),
        ("forward red.png --out file/f.png", "cannot write file/f.png"),
        ("forward words.png --out f.png", "words.png:"),
        ("forward none.png --out f.png", "cannot read none.png"),
        ("forward red.png --schedule linnear --out f.png", "did you mean 'linear'"),
        ("schedules --out s.gif", "nothing moves in this lesson"),
        ("reverse none --out r.png", "there is no model at none"),
        ("reverse flow panda --out r.png", "trained without captions"),
        ("reverse flow --sampler heunn --out r.png", "did you mean 'heun'"),
        ("reverse flow --grid unifrom --out r.png", "did you mean 'uniform'"),
        ("reverse flow --steps 0 --out r.png", "steps"),
        ("samplers flow panda --out s.png", "trained without captions"),
        ("samplers flow --samplers ddim,heunn --out s.png", "did you mean 'heun'"),
        ("samplers flow --evaluations 10,x --out s.png", "expected numbers from 1 to 1000"),
        ("samplers flow --evaluations 0 --out s.png", "expected numbers from 1 to 1000"),
        ("forward red.png", "--out is missing: File to write: .png, .gif or .html."),
    ],
)
def test_bad_input_is_one_line(words: str, answer: str, bad_folder: Command) -> None:
    assert answer in bad_folder("show", *words.split()).refusal
