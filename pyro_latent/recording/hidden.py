"""Latent sites that no data depends on: they integrate to one, and are drawn from the model, given all others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..families import family_of
from .sites import DiscreteSite, LatentSite, Plate, ScoredSite


def hidden_sites(
    latents: Mapping[str, LatentSite],
    discrete: Mapping[str, DiscreteSite],
    scored: Mapping[str, ScoredSite],
    known: Collection[str] = (),
) -> tuple[dict[str, tuple[Plate, ...]], frozenset[str]]:
    """The sites to integrate out, with their plates, in the order of the model, and those that others of them read: of
    those that no data depends on, the ones that ``obs_mask`` makes for missing data, those without a factor of q or an
    expected log density, and whatever depends on one of these. ``known`` sites have a factor whatever reads them.
    """
    users = _users([*latents, *discrete], scored)
    shown = _above({s.name for s in scored.values() if s.observed}, users)
    unread = any(s.observed and s.density is None for s in scored.values())  # data that may depend on anything
    found: set[str] = set()
    for name in users:
        if name not in scored or name in shown or name in known or not _is_free(name, latents, discrete):
            continue
        density = scored[name].density
        other = name.removesuffix("_unobserved") + "_observed"
        missing = name.endswith("_unobserved") and other in scored and users[name] <= {name}
        if missing or (not unread and (_lacks_family(latents.get(name)) or density is None or density.opacity)):
            found |= _reached({name}, users)
    read = frozenset(name for name in found if users[name] & found - {name})
    return {name: site.plates for name, site in scored.items() if name in found}, read


def reached_from(names: Collection[str], latents: Collection[str], scored: Mapping[str, ScoredSite]) -> set[str]:
    """The sites that depend on these latents, among all ``latents``; those themselves are among them."""
    return _reached(names, _users(latents, scored))


def _users(names: Collection[str], scored: Mapping[str, ScoredSite]) -> dict[str, set[str]]:
    """By latent, the sites whose densities read it."""
    users: dict[str, set[str]] = {name: set() for name in names}
    for site in scored.values():
        for name in (site.parents | (frozenset() if site.density is None else site.density.sites)) & users.keys():
            users[name].add(site.name)
    return users


def _lacks_family(site: LatentSite | None) -> bool:
    """Whether a continuous site has no family, so that its factor would be an integral at best."""
    return site is not None and not site.family and family_of(site.distribution) is None


def _is_free(name: str, latents: Mapping[str, LatentSite], discrete: Mapping[str, DiscreteSite]) -> bool:
    """Whether a site has no update of its own, and is no point."""
    if name in discrete:
        return discrete[name].update is None
    return latents[name].update is None and latents[name].point is None


def _above(names: Collection[str], users: Mapping[str, Collection[str]]) -> set[str]:
    """Some sites, and those that they depend on."""
    parents: dict[str, list[str]] = {}
    for name, own in users.items():
        for user in own:
            parents.setdefault(user, []).append(name)
    return _reached(names, parents)


def _reached(names: Collection[str], users: Mapping[str, Collection[str]]) -> set[str]:
    """Some sites, and those that depend on them."""
    found, waiting = set(names), list(names)
    while waiting:
        new = set(users.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


__all__ = ["hidden_sites", "reached_from"]
