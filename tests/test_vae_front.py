"""The face of ``VAE``: what it encodes, decodes and draws, the images that it takes, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from pyro_latent.errors import DataError, ModelError
from pyro_latent.gradient.flows import make_flow
from pyro_latent.models.vae import VAE, History, fit, load_digits


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits()[0][:200]


def small(seed: int = 0, **options: Any) -> VAE:
    pyro.set_rng_seed(seed)
    return VAE((8, 8), 3, hidden=(16,), **options)


def same_parameters(one: VAE, other: VAE) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# ------------------------------------------------------------------------------------------- encoding and decoding


def test_encode_and_decode_are_the_means_of_the_guide_and_the_model(digits: Tensor) -> None:
    vae = small()
    z = vae.encode(digits)
    assert torch.equal(z, vae.posterior(digits).mean) and not z.requires_grad
    assert torch.equal(vae.decode(z), vae.mean_images(z)) and torch.equal(vae.reconstruct(digits), vae.decode(z))
    assert torch.equal(vae.decode(z.double().numpy()), vae.decode(z))
    draws = vae.encode(digits[:4], num_samples=4000)
    posterior = vae.posterior(digits[:4]).base_dist
    assert ((draws.mean(0) - posterior.loc).abs() < 5 * posterior.scale / 4000**0.5).all()


def test_a_flow_is_encoded_at_the_mean_of_its_draws(digits: Tensor) -> None:
    vae = small(flow=make_flow("affine_coupling", 3, length=2))
    state = torch.get_rng_state()
    z = vae.encode(digits[:5])
    assert torch.equal(vae.encode(digits[:5]), z) and torch.equal(torch.get_rng_state(), state)
    draws = vae.encode(digits[:5], num_samples=2000)
    assert ((draws.mean(0) - z).abs() < 6 * draws.std(0) / 50**0.5).all()


def test_samples_are_draws_of_the_model(digits: Tensor) -> None:
    vae = small()
    pyro.set_rng_seed(1)
    drawn, means = vae.sample(2000), vae.sample(2000, noise=False)
    assert drawn.shape == (2000, 8, 8) and set(drawn.unique().tolist()) == {0.0, 1.0}
    spread = (means * (1 - means) + means.var(0)).mean(0).sqrt() * (2 / 2000) ** 0.5
    assert ((drawn.mean(0) - means.mean(0)).abs() < 5 * spread).all()
    levels = VAE((8, 8), 2, hidden=(8,), likelihood="categorical", levels=4)
    assert levels.sample(3).dtype == torch.int64 and levels.decode(np.zeros((1, 2))).shape == (1, 8, 8)
    with pytest.raises(ValueError, match="Expected num_images to be an integer of at least 1; got 0"):
        vae.sample(0)


# ------------------------------------------------------------------------------------------------------------- images


def loader(images: Tensor, **options: Any) -> DataLoader[Any]:
    """One with labels, whose draws are its own."""
    data = TensorDataset(images, torch.zeros(len(images)))
    return DataLoader(data, generator=torch.Generator().manual_seed(0), **options)


def test_an_array_and_a_loader_train_as_the_tensor_does(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n))
    given: dict[str, Any] = {
        "tensor": (digits, {"batch_size": 60}),
        "array": (digits.double().numpy(), {"batch_size": 60}),
        "loader": (loader(digits, batch_size=60), {}),
    }
    fits, histories = {}, {}
    for name, (images, options) in given.items():
        fits[name] = small()
        histories[name] = fits[name].fit(images, epochs=2, validation=images, **options)
    for name in ("array", "loader"):
        assert same_parameters(fits[name], fits["tensor"])
        assert histories[name].loss == histories["tensor"].loss
        assert histories[name].validation_elbo == histories["tensor"].validation_elbo
        assert torch.equal(fits[name].encode(given[name][0]), fits["tensor"].encode(digits))


@pytest.mark.parametrize("part", ["dataset", "sampler"])
def test_a_loader_stands_for_all_of_its_images(digits: Tensor, part: str) -> None:
    """With Bayesian weights, whose divergence counts once for N images; those that an epoch drops count too."""
    if part == "dataset":
        given = loader(digits[:150], batch_size=100, drop_last=True)
    else:
        given = loader(digits, batch_size=100, drop_last=True, sampler=SubsetRandomSampler(range(150)))
    vae = small(weight_prior=1.0)
    history = vae.fit(given, epochs=1, learning_rate=1e-30)
    whole = small(weight_prior=1.0).fit(digits[:150], epochs=1, learning_rate=1e-30)
    assert history.weight_kl[0] == pytest.approx(whole.weight_kl[0], rel=1e-5)
    assert history.loss[0] == pytest.approx(-150 * history.elbo[0], rel=1e-5)


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(8, 8)


def test_images_that_cannot_be_read_are_named(digits: Tensor) -> None:
    vae = small()
    before = [p.clone() for p in vae.parameters()]
    with pytest.raises(ValueError, match=r"Expected no batch_size with a DataLoader.*; got 20\. Write DataLoader"):
        vae.fit(loader(digits, batch_size=10), batch_size=20)
    with pytest.raises(ValueError, match=r"Expected a DataLoader whose dataset has a length.*; got Endless"):
        vae.fit(DataLoader(Endless()))
    with pytest.raises(DataError, match=r"at least one minibatch; got none\. Write drop_last=False"):
        vae.fit(loader(digits[:5], batch_size=10, drop_last=True))
    with pytest.raises(DataError, match=r"dtype torch.float32; got torch.uint8\. Write images.float\(\) / 255"):
        vae.fit((digits * 255).numpy().astype(np.uint8))
    with pytest.raises(DataError, match="Expected images of numbers; got an array of dtype <U"):
        vae.encode(np.array([["a"]]))
    with pytest.raises(DataError, match=r"Expected images in \[0, 1\].*got values from 0 to 16"):
        vae.fit(loader(digits * 16, batch_size=100))
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


# ----------------------------------------------------------------------------------------------------- early stopping


def test_latents_of_another_shape_and_loaders_without_images_are_named(digits: Tensor) -> None:
    vae = small()
    for z, found in ((torch.zeros(3, vae.latent_dim + 1), r"shape \[3, "), ([[0.0]], "list")):
        with pytest.raises(ValueError, match=rf"Expected latent vectors as a tensor of shape .*; got {found}"):
            vae.decode(z)
    none = DataLoader(TensorDataset(digits[:3]), batch_size=4, drop_last=True)
    with pytest.raises(DataError, match="Expected a DataLoader with at least one minibatch; got none"):
        vae.encode(none)
    with pytest.raises(DataError, match="Expected a DataLoader with at least one minibatch; got none"):
        vae.fit(digits, epochs=1, validation=none)


def stopping(images: Tensor, **options: Any) -> tuple[VAE, History]:
    """A VAE that overfits forty images within some epochs."""
    vae = small()
    settings: dict[str, Any] = {"learning_rate": 3e-2, "batch_size": 20, "validation": images[40:140]}
    return vae, vae.fit(images[:40], **(settings | options))


def test_it_stops_after_so_many_epochs_without_a_new_best_and_has_the_best_parameters(digits: Tensor) -> None:
    images = (digits > 0.5).float()
    vae, history = stopping(images, epochs=500, patience=4)
    assert 5 < len(history) < 500 and len(history) - history.best_epoch == 4
    assert history.validation_elbo[history.best_epoch - 1] == max(history.validation_elbo)
    best, until_then = stopping(images, epochs=history.best_epoch)
    assert same_parameters(vae, best) and until_then.loss == history.loss[: history.best_epoch]
    last, whole = stopping(images, epochs=history.best_epoch + 2, patience=40)
    assert same_parameters(last, best) and len(whole) == history.best_epoch + 2


def test_a_run_that_stops_early_resumes_where_it_would_have_ended(digits: Tensor, tmp_path: Path) -> None:
    images = (digits > 0.5).float()
    whole, history = stopping(images, epochs=500, patience=3)
    for epochs in (2, history.best_epoch + 1, 500, 500):
        resumed, again = stopping(images, epochs=epochs, patience=3, checkpoint=tmp_path / "run.pt")
    assert same_parameters(resumed, whole) and again.validation_elbo == history.validation_elbo


def test_patience_needs_held_out_images(digits: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected held-out images with patience=3; got none\. Write fit"):
        fit(small(), digits, patience=3)
    with pytest.raises(ValueError, match="Expected patience to be an integer of at least 1; got 0"):
        fit(small(), digits, patience=0, validation=digits)
    with pytest.raises(ModelError, match="Expected a history with validation images; got none"):
        _ = small().fit(digits, epochs=1).best_epoch
