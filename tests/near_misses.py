"""Random near-misses: programs that run in Pyro, and are not conjugate, or not exactly computable, or look so.

:func:`near_miss` writes one from a seed: a template (see :data:`TEMPLATES`) with its constants, sizes, plates and
dtypes drawn. The library refuses it by name, or answers rightly; which of the two is its business.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from random_models import RandomProgram

# In a template: v, w are normals, g a vector of three, t, s gammas, p a beta, f a Dirichlet, z a Categorical of three
# values, b a Bernoulli, m three normals in a plate, W a Wishart matrix; in a plate of N, u are normals, c Categoricals,
# e Bernoullis. What follows "| " is observed: its distribution, and after another " | " the kind of its data. "#" is a
# positive random number, "~" one of either sign.
PRIORS = {
    "v": 'v = pyro.sample("v", dist.Normal(~, 1.0))',
    "w": 'w = pyro.sample("w", dist.Normal(~, 1.0))',
    "t": 't = pyro.sample("t", dist.Gamma(3.0, 2.0))',
    "s": 's = pyro.sample("s", dist.Gamma(2.0, 1.0))',
    "p": 'p = pyro.sample("p", dist.Beta(2.0, 3.0))',
    "f": 'f = pyro.sample("f", dist.Dirichlet(torch.tensor([2.0, 3.0, 1.5])))',
    "g": 'g = pyro.sample("g", dist.Normal(torch.tensor([#, -#, 0.0]), 1.0).to_event(1))',
    "z": 'z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.5, 0.3]))MARK)',
    "b": 'b = pyro.sample("b", dist.Bernoulli(0.4)MARK)',
    "m": 'with pyro.plate("k", 3):\n    m = pyro.sample("m", dist.Normal(~, 1.5))',
    "u": 'with pyro.plate("n", N):\n    u = pyro.sample("u", dist.Normal(~, 1.0))',
    "c": 'with pyro.plate("n", N):\n    c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3]))MARK)',
    "W": 'W = pyro.sample("W", dist.Wishart(torch.tensor(4.5), torch.eye(3) + 0.2))',
    "e": 'with pyro.plate("n", N):\n    e = pyro.sample("e", dist.Bernoulli(0.4)MARK)',
}

_BETWEEN = "| dist.Categorical(torch.cat([below, torch.ones(1)]).diff(prepend=torch.zeros(1))) | label"
_MIXTURE = "| dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), parts) | real"

# (latents, lines); an observed line is (distribution, data kind).
TEMPLATES: list[tuple[str, list[str]]] = [
    # Links.
    ("v", ["| dist.Bernoulli(logits=# * v) | bit"]),
    ("v", ["| dist.Bernoulli(torch.sigmoid(v)) | bit"]),
    ("v", ["| dist.Binomial(4, logits=v) | bit"]),
    ("v", ["| dist.Poisson(v.exp()) | count"]),
    ("vw", ["| dist.Poisson((v + w).exp()) | count"]),
    ("v", ["| dist.Normal(0.0, v.exp()) | real"]),
    ("v", ["| dist.Normal(0.0, torch.nn.functional.softplus(v)) | real"]),
    ("g", ["| dist.Categorical(logits=g) | label"]),
    ("g", ["| dist.Categorical(torch.softmax(g, -1)) | label"]),
    ("f", ["| dist.Categorical(logits=f) | label"]),
    ("v", ["| dist.Normal(v.tanh(), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.sin(# * v), 1.0) | real"]),
    # What auxiliary sites are for, and what looks so.
    ("vw", ["| dist.Categorical(logits=torch.stack([v, w, 0.5 * v])) | label"]),
    ("vw", ["| dist.Categorical(torch.softmax(torch.stack([v, w, v]), 0) + 0.01) | label"]),
    ("vw", ["below = torch.special.ndtr(torch.tensor([-0.5, 0.6]) - v - w)", _BETWEEN]),
    ("t", ["below = torch.special.ndtr(torch.tensor([-0.5, 0.6]) * t)", _BETWEEN]),
    ("vw", ["below = torch.special.ndtr(torch.stack([v, v + w * w]))", _BETWEEN]),
    ("vw", ["| dist.Laplace(v + w, #) | real"]),
    ("vt", ["| dist.Laplace(v, 1 / t) | real"]),
    ("vw", ["| dist.StudentT(3.0, v - w, #) | real"]),
    ("vw", ["| dist.Bernoulli(dist.Normal(0.0, 1.0).cdf(v + w)) | bit"]),
    ("vw", ["| dist.Bernoulli(0.9 * torch.sigmoid(v + w)) | bit"]),
    ("vw", ["p = torch.sigmoid(v + w)", "p = p**2", "| dist.Bernoulli(p) | bit"]),
    ("vw", ["| dist.NegativeBinomial(2.0, logits=v + w) | count"]),
    ("vw", ["| dist.ZeroInflatedNegativeBinomial(2.0, logits=v + w, gate=torch.tensor(0.3)) | count"]),
    ("ts", ["| dist.ZeroInflatedPoisson(t + s, gate=torch.tensor(0.3)) | count"]),
    ("tz", ["| dist.Poisson(t * (1 + z) + 1.0) | count"]),
    ("tp", ["| dist.Poisson(t * p + #) | count"]),
    ("vb", ["| dist.MaskedMixture(b > 0, dist.StudentT(3.0, v, 1.0), dist.Laplace(0.3, 1.0)) | real"]),
    ("vw", ["parts = dist.Laplace(torch.stack([v, w]), 1.0)", _MIXTURE]),
    # Wrong parameterizations.
    ("t", ["| dist.Normal(0.0, t) | real"]),
    ("t", ["| dist.Normal(0.0, t.sqrt()) | real"]),
    ("ts", ["| dist.Normal(0.0, (t + s).rsqrt()) | real"]),
    ("t", ["| dist.Normal(t, t.rsqrt()) | real"]),
    ("t", ["| dist.Normal(t, 1.0) | real"]),
    ("t", ["| dist.Gamma(t, 1.0) | positive"]),
    ("ts", ["| dist.Gamma(t, s) | positive"]),
    ("ts", ["| dist.Poisson(t + s) | count"]),
    ("ts", ["| dist.Poisson(t / s) | count"]),
    ("t", ["| dist.Exponential(1 / t) | positive"]),
    ("t", ["| dist.Exponential(t**2) | positive"]),
    ("t", ["| dist.Exponential(t.log().exp()) | positive"]),
    ("p", ["| dist.Bernoulli(# / 2 * p) | bit"]),
    ("p", ["| dist.Bernoulli(p * p) | bit"]),
    ("p", ["| dist.Bernoulli(1 - p * p) | bit"]),
    ("p", ["| dist.Bernoulli(p**3) | bit"]),
    ("p", ["| dist.Bernoulli(p.sqrt()) | bit"]),
    ("p", ["| dist.Normal(p, 1.0) | real"]),
    ("p", ["| dist.Bernoulli(logits=p.log()) | bit"]),
    ("f", ["| dist.Bernoulli(f[1]) | bit"]),
    ("f", ["| dist.Bernoulli(f[0] + f[1]) | bit"]),
    ("f", ["| dist.Categorical(f[:2]) | bit_label"]),
    ("f", ["| dist.Categorical(f.flip(-1)) | label"]),
    ("f", ["| dist.Categorical(f**2) | label"]),
    ("f", ["| dist.Categorical(f + 0.1) | label"]),
    ("f", ["| dist.Categorical(0.5 * f) | label"]),
    ("f", ["| dist.Categorical(f * torch.tensor([1.0, 2.0, 3.0])) | label"]),
    ("f", ["| dist.Dirichlet(# + f) | simplex"]),
    ("t", ["| dist.StudentT(t, 0.0, 1.0) | real"]),
    ("t", ["| dist.Beta(t, 2.0) | unit"]),
    ("t", ["| dist.Laplace(0.0, 1 / t) | real"]),
    ("v", ["| dist.LogNormal(v, 1.0) | positive"]),
    ("v", ["| dist.StudentT(3.0, v, 1.0) | real"]),
    ("v", ["| dist.Cauchy(v, 1.0) | real"]),
    ("t", ["| dist.NegativeBinomial(t, torch.tensor(0.4)) | count"]),
    ("p", ["| dist.Geometric(p) | count"]),
    # Powers and couplings within a block.
    ("v", ["| dist.Normal(v * v, 1.0) | real"]),
    ("v", ["| dist.Normal(v**2, 1.0) | real"]),
    ("v", ["| dist.Normal((4 * v**2).sqrt(), 1.0) | real"]),
    ("v", ["| dist.Normal(v.abs(), 1.0) | real"]),
    ("v", ["| dist.Normal(1 / v, 1.0) | real"]),
    ("vw", ["| dist.Normal(v / w, 1.0) | real"]),
    ("u", ["| dist.Normal(torch.tensor([#, -1.0, 0.5, 2.0])[:N] @ u, 1.0) | real"]),
    ("u", ["| dist.Normal(u.sum(), 1.0) | real"]),
    ("u", ["| dist.Normal(u[0] - u[-1], 1.0) | real"]),
    ("u", ["| dist.Normal(u[0] * u[-1], 1.0) | real"]),
    ("u", ["| dist.Normal(u.cumsum(0)[-1], 1.0) | real"]),
    ("u", ["| dist.Normal(u.max(), 1.0) | real"]),
    ("u", ["| dist.Normal(u.sort()[0][0], 1.0) | real"]),
    ("u", ["| dist.Normal(u.median(), 1.0) | real"]),
    ("u", ["| dist.Normal(u.prod(), 1.0) | real"]),
    ("u", ["| dist.Normal(u.norm(), 1.0) | real"]),
    ("u", ["| dist.Normal(u.std(), 1.0) | real"]),
    ("u", ["| dist.Normal(u.logsumexp(0), 1.0) | real"]),
    ("um", ["| dist.Normal(m[u.argmax()], 1.0) | real"]),
    ("m", ["| dist.Normal(m[m.argsort()][0], 1.0) | real"]),
    ("v", ["| dist.Normal(v.clamp(min=0.0), 1.0) | real"]),
    ("v", ["| dist.Normal(v.relu(), 1.0) | real"]),
    ("v", ["| dist.Normal(v.round(), 1.0) | real"]),
    ("vw", ["| dist.Normal(torch.max(v, w), 1.0) | real"]),
    ("vw", ["| dist.Normal(torch.where(v > 0, v, w), 1.0) | real"]),
    ("vw", ["| dist.Normal(torch.where(v > w, 1.0, -1.0), 1.0) | real"]),
    ("v", ["| dist.Normal((v > 0).double(), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.heaviside(v, torch.tensor(0.0, dtype=v.dtype)), 1.0) | real"]),
    ("v", ["| dist.Normal((v + v) ** 2, 1.0) | real"]),
    ("v", ["pyro.factor('x', -0.1 * (v + v) ** 2)"]),
    ("vw", ["| dist.Normal((v + w) ** 2, 1.0) | real"]),
    ("vw", ["pyro.factor('x', -0.1 * (v - w) ** 2)"]),
    ("vw", ["| dist.Normal(((v - w) ** 2).sqrt(), 1.0) | real"]),
    ("p", ["| dist.Normal(1 / p.log(), 1.0) | real"]),
    ("t", ["pyro.factor('x', 1 / t.log())"]),
    ("f", ["| dist.Categorical(f[:1]) | none_label"]),
    ("f", ["| dist.Categorical(f.unsqueeze(-1)[0]) | none_label"]),
    # Integers beside latents.
    ("v", ["| dist.Normal(torch.tensor(2) + v + 0.5, 1.0) | real"]),
    ("v", ["| dist.Normal((torch.tensor(2) * v + 0.5) * 0.5, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.where(torch.tensor(2) > 1, 1, v) + 0.5, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.where(torch.tensor(True), torch.tensor(1), v) + 0.5, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor(True) * v * 0.5, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor(3) / 2 * v, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor(3) // 2 * v + 0.25, 1.0) | real"]),
    ("v", ["| dist.Normal((1 - torch.tensor(2) * v) / 4, 1.0) | real"]),
    ("t", ["| dist.Poisson(torch.tensor(3) * t * 0.5) | count"]),
    ("ts", ["| dist.Normal(0.0, (torch.tensor(2) * t * s).rsqrt()) | real"]),
    ("p", ["| dist.Bernoulli(torch.tensor(1) - p) | bit"]),
    ("u", ["| dist.Normal((torch.arange(N) * u)[-1] + 0.5, 1.0) | real"]),
    ("zv", ["| dist.Normal(z + v + 0.5, 1.0) | real"]),
    ("zv", ["| dist.Normal(z * v * 0.5, 1.0) | real"]),
    ("zt", ["| dist.Poisson((1 + z) * t * 0.5) | count"]),
    ("zt", ["| dist.Normal(0.5, ((1 + z) * t).rsqrt()) | real"]),
    ("zv", ["| dist.Normal((z == 1) * v + 0.5, 1.0) | real"]),
    # Parts of matrices.
    ("W", ["| dist.MultivariateNormal(torch.zeros(2), precision_matrix=W[:2, :2]) | pair"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(2), covariance_matrix=torch.inverse(W)[:2, :2]) | pair"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=2.0 * W) | reals"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=W + torch.eye(3)) | reals"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=W.mT) | reals"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(3), covariance_matrix=W) | reals"]),
    ("W", ["| dist.MultivariateNormal(torch.zeros(3), scale_tril=torch.linalg.cholesky(W)) | reals"]),
    ("W", ["| dist.Normal(0.0, W[0, 0].rsqrt()) | real"]),
    ("t", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=t * torch.eye(3)) | reals"]),
    ("t", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=torch.diag(t.expand(3))) | reals"]),
    ("ts", ["| dist.MultivariateNormal(torch.zeros(2), precision_matrix=torch.diag(torch.stack([t, s]))) | pair"]),
    ("t", ["| dist.MultivariateNormal(torch.zeros(3), precision_matrix=t * (torch.eye(3) + 0.3)) | reals"]),
    # Values as numbers.
    ("v", ["| dist.Normal(float(v), 1.0) | real"]),
    ("v", ["| dist.Normal(v.item(), 1.0) | real"]),
    ("v", ["| dist.Normal(v.detach(), 1.0) | real"]),
    ("v", ["| dist.Normal(v.data, 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor(v), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.as_tensor(v), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor([v, 1.0]).sum(), 1.0) | real"]),
    ("v", ["| dist.Normal(v.clone(), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.from_numpy(v.detach().numpy()), 1.0) | real"]),
    ("v", ["| dist.Normal(torch.tensor(v.tolist()), 1.0) | real"]),
    ("v", ["if v > 0:\n    v = -v", "| dist.Normal(v, 1.0) | real"]),
    ("v", ["loc = v if bool(v < 0.3) else 2 * v", "| dist.Normal(loc, 1.0) | real"]),
    ("vw", ["| dist.Normal(max(v, w), 1.0) | real"]),
    ("v", ["| dist.Normal(abs(v), 1.0) | real"]),
    ("v", ["| dist.Normal(round(v.item()), 1.0) | real"]),
    ("z", ["| dist.Normal(float(z), 1.0) | real"]),
    ("z", ["| dist.Normal(z.item() * 1.0, 1.0) | real"]),
    ("z", ["| dist.Normal([0.5, -1.0, 2.0][int(z)], 1.0) | real"]),
    ("z", ["| dist.Normal([0.5, -1.0, 2.0][z], 1.0) | real"]),
    ("zv", ["| dist.Normal({0: v, 1: 2 * v, 2: -v}[z.item()], 1.0) | real"]),
    ("zv", ["if z == 1:\n    v = 2 * v", "| dist.Normal(v, 1.0) | real"]),
    ("bv", ["if b:\n    v = 2 * v", "| dist.Normal(v, 1.0) | real"]),
    ("bv", ["v = 2 * v if b.bool() else v", "| dist.Normal(v, 1.0) | real"]),
    ("bv", ["while b > 0:\n    v, b = v + 1, b - 1", "| dist.Normal(v, 1.0) | real"]),
    ("ev", ["if e.any():\n    v = 2 * v", "| dist.Normal(v, 1.0) | real"]),
    ("ev", ["for n in range(N):\n    v = v + 1 if e[n] else v", "| dist.Normal(v, 1.0) | real"]),
    ("z", ["loc = sum([1.0] * int(z))", "| dist.Normal(loc, 1.0) | real"]),
    ("z", ["| dist.Normal(torch.zeros(int(z) + 1).sum() + z * 1.0, 1.0) | real"]),
    ("z", ["| dist.Normal(torch.arange(3.0)[: z + 1].sum(), 1.0) | real"]),
    # In-place writes.
    ("v", ["loc = torch.zeros(2)", "loc[0] = v", "| dist.Normal(loc.sum(), 1.0) | real"]),
    ("v", ["loc = torch.zeros(())", "loc += v", "| dist.Normal(loc, 1.0) | real"]),
    ("v", ["loc = torch.zeros(2)", "loc[:] = v", "| dist.Normal(loc[1], 1.0) | real"]),
    ("v", ["loc = torch.zeros(())", "loc.copy_(v)", "| dist.Normal(loc, 1.0) | real"]),
    ("v", ["loc = torch.zeros(())", "loc.fill_(v)", "| dist.Normal(loc, 1.0) | real"]),
    ("v", ["loc = torch.ones(())", "loc.mul_(v)", "| dist.Normal(loc, 1.0) | real"]),
    ("v", ["old = v", "v += 1.0", "| dist.Normal(v + old, 1.0) | real"]),
    ("u", ["u[0] = 2.0", "| dist.Normal(u[0] + u[-1], 1.0) | real"]),
    ("u", ["loc = u.clone()", "loc[-1] = 2.0", "| dist.Normal(loc[-1], 1.0) | real"]),
    ("m", ["view = m[1:]", "view.mul_(2.0)", "| dist.Normal(m[1], 1.0) | real"]),
    ("e", ["loc = torch.zeros(N)", "loc[e > 0] = 1.0", "| dist.Normal(loc[0], 1.0) | real"]),
    ("c", ["loc = torch.zeros(N)", "loc[c == 1] = 1.0", "| dist.Normal(loc[0], 1.0) | real"]),
    ("z", ["loc = torch.zeros(3)", "loc[z] = 1.0", "| dist.Normal(loc[1], 1.0) | real"]),
    ("z", ["loc = torch.zeros(3)", "loc[0] = z", "| dist.Normal(loc.sum(), 1.0) | real"]),
    ("b", ["loc = torch.zeros(())", "loc += b", "| dist.Normal(loc, 1.0) | real"]),
    ("zm", ["m[z] = 0.5", "| dist.Normal(m[1], 1.0) | real"]),
    # Discrete latents in ways with no local meaning.
    ("c", ["| dist.Normal(torch.sort(c)[0][0] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(c.argmax() * 1.0, 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c.max()], 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c.min()], 1.0) | real"]),
    ("c", ["| dist.Normal(c.cumsum(0)[-1] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(c.roll(1)[0] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(c.flip(0)[0] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(len(c.unique()) * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(torch.bincount(c, minlength=3)[1] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal((c == 1).sum() * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal((c[0] == c[-1]) * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal((c > 0).all() * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(c.double().mean(), 1.0) | real"]),
    ("c", ["| dist.Normal(c.double().std(), 1.0) | real"]),
    ("c", ["| dist.Normal(c.shape[0] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(len(c) * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(c.numel() * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(sum(c) * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(sum(x * 1.0 for x in c), 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c].sum(), 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c[0]] * m[c[-1]], 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c[0]], 1.0) | real"]),
    ("cm", ["first, *_ = c", "| dist.Normal(m[first], 1.0) | real"]),
    ("cm", ["| dist.Normal(m[c.reshape(-1)[0]], 1.0) | real"]),
    ("cm", ["| dist.Normal(m.gather(0, c)[0], 1.0) | real"]),
    ("cm", ["| dist.Normal(m.index_select(0, c)[0], 1.0) | real"]),
    ("cm", ["| dist.Normal(torch.take(m, c)[0], 1.0) | real"]),
    ("c", ["| dist.Normal(F.one_hot(c, 3).sum(0)[1] * 1.0, 1.0) | real"]),
    ("c", ["| dist.Normal(F.one_hot(c, 3).double().mean(0) @ torch.tensor([1.0, 2.0, -1.0]).double(), 1.0) | real"]),
    ("e", ["| dist.Normal(e.sum(), 1.0) | real"]),
    ("e", ["| dist.Normal(e.prod(), 1.0) | real"]),
    ("e", ["| dist.Normal(e @ torch.tensor([1.0, 2.0, -1.0, 0.5])[:N].to(e), 1.0) | real"]),
    ("e", ["| dist.Bernoulli(e.mean() * 0.8 + 0.1) | bit"]),
    ("e", ["| dist.Bernoulli(1 - torch.prod(1 - 0.7 * e)) | bit"]),
    ("e", ["| dist.Bernoulli(torch.where(e.bool().any(), 0.9, 0.2)) | bit"]),
    ("ez", ["| dist.Normal(e[z.clamp(max=N - 1)], 1.0) | real"]),
    ("zm", ["| dist.Normal(m[(z + 1) % 3], 1.0) | real"]),
    ("zm", ["| dist.Normal(m[2 - z], 1.0) | real"]),
    ("zm", ["| dist.Normal(m[z - 1], 1.0) | real"]),
    ("zm", ["| dist.Normal(m.roll(1)[z], 1.0) | real"]),
    ("zm", ["| dist.Normal(m[:2][z.clamp(max=1)], 1.0) | real"]),
    ("zbm", ["| dist.Normal(m[(z * b.long()).long()], 1.0) | real"]),
    ("zbm", ["| dist.Normal(m[torch.max(z, b.long())], 1.0) | real"]),
    ("zm", ["| dist.Normal(m[torch.tensor([2, 0, 1])[z]], 1.0) | real"]),
    ("zv", ["| dist.Normal(v * z**2, 1.0) | real"]),
    ("zv", ["| dist.Normal(v**z, 1.0) | real"]),
    ("zv", ["| dist.Normal(v / (1 + z), 1.0) | real"]),
    ("zt", ["| dist.Exponential(t * (1.0 + z)) | positive"]),
    ("zt", ["| dist.Gamma(1.0 + z, t) | positive"]),
    ("bp", ["| dist.Bernoulli(b * p + (1 - b) * 0.3) | bit"]),
    ("bp", ["| dist.Bernoulli(p**b) | bit"]),
    ("bt", ["| dist.Normal(b, t.rsqrt() * (1 + b)) | real"]),
    ("bvw", ["| dist.Normal(b * v + (1 - b) * w, 1.0) | real"]),
    ("bvw", ["| dist.Normal(torch.stack([v, w])[b.long()], 1.0) | real"]),
    ("bvw", ["| dist.Normal([v, w][0] + b * (w - v), 1.0) | real"]),
    ("z", ["with pyro.plate('d', 3):\n    | dist.Normal(torch.arange(3.0) * (torch.arange(3) == z), 1.0) | reals"]),
    ("zm", ["with pyro.plate('d', 3):\n    | dist.Normal(m * (torch.arange(3) <= z), 1.0) | reals"]),
    ("zm", ["with pyro.plate('d', 3):\n    | dist.Normal(m[z], 1.0).mask(torch.arange(3) <= z) | reals"]),
    ("bv", ["with poutine.scale(scale=1.0 + b):\n    | dist.Normal(v, 1.0) | real"]),
    ("bv", ["with poutine.mask(mask=b > 0):\n    | dist.Normal(v, 1.0) | real"]),
    ("tv", ["with poutine.scale(scale=t):\n    | dist.Normal(v, 1.0) | real"]),
    ("v", ["with poutine.mask(mask=v > 0):\n    | dist.Normal(v, 1.0) | real"]),
    ("bv", ["pyro.factor('x', b * v)"]),
    ("v", ["pyro.factor('x', -v.abs())"]),
    ("v", ["pyro.factor('x', -0.5 * v * v)"]),
    ("v", ["pyro.deterministic('d', 2 * v)", "| dist.Normal(v, 1.0) | real"]),
    ("u", ["with pyro.plate('r', N, dim=-2):\n    | dist.Normal(u, 1.0) | grid"]),
    ("c", ["with pyro.plate('r', N, dim=-2):\n    | dist.Normal(c * 1.0, 1.0) | grid"]),
    ("cm", ["with pyro.plate('r', N, dim=-2):\n    | dist.Normal(m[c] - m[c].unsqueeze(-1), 1.0) | grid"]),
    ("c", ["with pyro.plate('r', N, dim=-2):\n    | dist.Normal((c == c.unsqueeze(-1)) * 1.0, 1.0) | grid"]),
    ("e", ["with pyro.plate('r', N, dim=-2):\n    | dist.Bernoulli(0.1 + 0.7 * e * e.unsqueeze(-1)) | bits"]),
]


def near_miss(seed: int) -> RandomProgram:
    """The near-miss of a seed: the templates in turn, each with another draw of its numbers."""
    chance = random.Random(seed)
    latents, lines = TEMPLATES[seed % len(TEMPLATES)]
    size = chance.choice([2, 2, 3])
    dtype = chance.choice([torch.float64, torch.float64, torch.float32])
    number = _numbers(chance)
    body = [PRIORS[name] for name in latents] if "c" not in latents or "e" not in latents else []
    body += [_observed(line, chance, size, dtype) for line in lines]
    observed = any("obs=" in line for line in body)
    if not observed or chance.random() < 0.3:  # something to be fitted beside it
        body.append('extra = pyro.sample("extra", dist.Normal(0.0, 1.0))')
        body.append('pyro.sample("y", dist.Normal(extra, 1.0), obs=torch.tensor(0.3))')
    mark = chance.choice(["", "", ', infer={"enumerate": "parallel"}'])
    text = "\n".join(body).replace("MARK", mark)
    while "#" in text:
        text = text.replace("#", number(), 1)
    while "~" in text:
        text = text.replace("~", chance.choice(["", "-"]) + number(), 1)
    indented = "\n".join(f"    {line}" for line in text.split("\n"))
    return RandomProgram(f"N = {size}\ndata = ()\n\n\ndef model():\n{indented}\n", dtype)


def _numbers(chance: random.Random) -> Callable[[], str]:
    return lambda: f"{chance.uniform(0.3, 1.8):.2f}"


def _observed(line: str, chance: random.Random, size: int, dtype: torch.dtype) -> str:
    """A line of a template, with its data in place."""
    head, *rest = line.split("| ", 1)
    if not rest:
        return line
    distribution, kind = rest[0].rsplit(" | ", 1)

    def real(low: float = -2.0, high: float = 2.0) -> str:
        return f"{chance.uniform(low, high):.2f}"

    first, second = sorted([chance.uniform(0.1, 0.9), chance.uniform(0.1, 0.9)])
    data = {
        "real": real(),
        "positive": real(0.2, 3.0),
        "unit": real(0.1, 0.9),
        "simplex": f"[{first:.2f}, {second - first:.2f}, {1 - second:.2f}]",
        "bit": f"{chance.randint(0, 1)}.0",
        "bit_label": str(chance.randint(0, 1)),
        "none_label": "0",
        "pair": f"[{real()}, {real()}]",
        "label": str(chance.randint(0, 2)),
        "count": f"{chance.randint(0, 4)}.0",
        "reals": "[" + ", ".join(real() for _ in range(3)) + "]",
        "grid": "[" + ", ".join("[" + ", ".join(real() for _ in range(size)) + "]" for _ in range(size)) + "]",
        "bits": "["
        + ", ".join("[" + ", ".join(f"{chance.randint(0, 1)}.0" for _ in range(size)) + "]" for _ in range(size))
        + "]",
    }[kind]
    indent = head.split("\n")[-1]
    if kind in ("grid", "bits"):  # a second plate beside that of the latents
        inner = f'{indent}with pyro.plate("q", N, dim=-1):\n{indent}    '
        return f'{head[: len(head) - len(indent)]}{inner}pyro.sample("x", {distribution}, obs=torch.tensor({data}))'
    return f'{head}pyro.sample("x", {distribution}, obs=torch.tensor({data}))'
