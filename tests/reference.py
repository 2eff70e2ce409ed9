"""The paper's equations as loops over samples and classes, in float64.

Written from the equations and shared with nothing: lists of floats in, floats out.
"""

from __future__ import annotations

import math


def unit(vector: list[float]) -> list[float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector] if norm else vector


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def centroid(members: list[list[float]]) -> list[float]:
    mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
    return unit(mean)


def varcon(
    embeddings: list[list[float]],
    labels: list[int],
    temperature: float,
    epsilon: float,
    leave_one_out: bool = False,
) -> list[dict[str, float]]:
    """Loss, kl, nll, confidence and tau2 of each sample of the batch."""
    samples = [unit(x) for x in embeddings]
    classes = sorted(set(labels))
    members = {c: [i for i, y in enumerate(labels) if y == c] for c in classes}
    results = []
    for i, (z, label) in enumerate(zip(samples, labels, strict=True)):
        references = {
            c: centroid([samples[j] for j in members[c]])
            for c in classes
            if not (leave_one_out and c == label)
        }
        if leave_one_out:
            mates = [samples[j] for j in members[label] if j != i]
            if not mates:
                results.append(dict.fromkeys(("loss", "kl", "nll"), 0.0))
                continue
            references[label] = centroid(mates)

        weight = {c: math.exp(dot(z, references[c]) / temperature) for c in classes}
        p = {c: weight[c] / sum(weight.values()) for c in classes}  # Eq. 8
        tau2 = (temperature - epsilon) + 2 * epsilon * p[label]  # Eq. 13
        one_hot = {c: float(c == label) for c in classes}  # Eq. 10
        q_exp = {c: 1 + (math.exp(1 / tau2) - 1) * one_hot[c] for c in classes}  # 11
        q = {c: q_exp[c] / sum(q_exp.values()) for c in classes}  # Eq. 12
        kl = sum(q[c] * math.log(q[c] / p[c]) for c in classes)
        nll = -math.log(p[label])
        results.append(
            {
                "loss": kl + nll,  # Eq. 7
                "kl": kl,
                "nll": nll,
                "confidence": p[label],
                "tau2": tau2,
            }
        )
    return results
