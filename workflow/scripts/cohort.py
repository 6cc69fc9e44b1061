"""How many samples a cohort of bulk counts needs."""

from job import InputError

MIN_SAMPLES = 10  # with fewer, loadings and dispersions are noise
FEW_SAMPLES = 30  # OUTRIDER's authors advise 50 or more; power falls off steeply below 30


def check_cohort(n_reference: int, n_query: int) -> list[str]:
    """Warnings about a bulk cohort; the reference is what the model learns normal from.

    Raises
    ------
    InputError: fewer than 10 reference samples (all samples, in a cohort without a query).
    """
    given = f"{n_reference} reference samples" + (f" (and {n_query} query)" if n_query else "")
    if n_reference < MIN_SAMPLES:
        raise InputError(
            f"sample table: {given} are too few to tell normal variation from outliers, at least "
            f"{MIN_SAMPLES} are needed; add controls of the same tissue and protocol"
        )
    if n_reference < FEW_SAMPLES:
        return [
            f"{given}: below {FEW_SAMPLES} the expected counts are uncertain and only gross "
            "outliers are found; add controls of the same tissue and protocol"
        ]
    return []
