"""The works that a run can stand on, as the methods name them and as BibTeX."""

import re
from dataclasses import dataclass

ICML = "Proceedings of the 35th International Conference on Machine Learning"
PMLR = "Proceedings of Machine Learning Research"
ICLR = "International Conference on Learning Representations"


@dataclass(frozen=True)
class Reference:
    """A work: ``authors`` as ``Family, Given; ...``, what it appeared in, where it is found.

    ``place``: further BibTeX fields, by their name; ``doi`` or, without one, ``arxiv``.
    """

    authors: str
    year: int
    title: str
    kind: str = "misc"
    place: tuple[tuple[str, str], ...] = ()
    doi: str = ""
    arxiv: str = ""

    @property
    def families(self) -> list[str]:
        return [author.split(",")[0] for author in self.authors.split("; ")]

    @property
    def cited_as(self) -> str:
        """Authors and year, as a text has them."""
        families = self.families
        names = f"{families[0]} et al." if len(families) > 2 else " & ".join(families)
        return f"{names} {self.year}"

    @property
    def where(self) -> str:
        """``doi:...`` or ``arXiv:...``; a book where it has neither."""
        if self.doi:
            return f"doi:{self.doi}"
        return f"arXiv:{self.arxiv}" if self.arxiv else f"in: {dict(self.place)['booktitle']}"

    @property
    def url(self) -> str:
        """Where a reader gets it; empty for a book."""
        if self.doi:
            return f"https://doi.org/{self.doi}"
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    @property
    def key(self) -> str:
        """The family of the first author and the year in ASCII: ``molder2021``."""
        family = self.families[0].translate(str.maketrans("öé", "oe"))
        return re.sub(r"\W", "", family).lower() + str(self.year)

    def __str__(self) -> str:
        return f"{self.cited_as}, {self.title}, {self.where}"

    def bibtex(self) -> str:
        """An entry; braces keep the capitals of the title."""
        fields = {"author": self.authors.replace("; ", " and "), "title": f"{{{self.title}}}"}
        fields |= {"year": str(self.year), **dict(self.place)}
        if self.doi:
            fields["doi"] = self.doi
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@{self.kind}{{{self.key},\n{lines}\n}}\n"


def _article(journal: str, volume: str, pages: str, number: str = "") -> dict:
    found = {"journal": journal, "volume": volume, "number": number, "pages": pages}
    return {"kind": "article", "place": tuple((k, v) for k, v in found.items() if v)}


def _proceedings(booktitle: str, pages: str = "", **more: str) -> dict:
    found = {"booktitle": booktitle, **more, "pages": pages}
    return {"kind": "inproceedings", "place": tuple((k, v) for k, v in found.items() if v)}


def _icml(pages: str) -> dict:
    return _proceedings(ICML, pages, series=PMLR, volume="80")


# In the order of their authors.
REFERENCES = (
    Reference(
        "Alemi, Alexander A.; Poole, Ben; Fischer, Ian; Dillon, Joshua V.; Saurous, Rif A.; "
        "Murphy, Kevin",
        2018,
        "Fixing a broken ELBO",
        **_icml("159--168"),
        arxiv="1711.00464",
    ),
    Reference(
        "Anders, Simon; Huber, Wolfgang",
        2010,
        "Differential expression analysis for sequence count data",
        **_article("Genome Biology", "11", "R106"),
        doi="10.1186/gb-2010-11-10-r106",
    ),
    Reference(
        "Bates, Stephen; Candès, Emmanuel; Lei, Lihua; Romano, Yaniv; Sesia, Matteo",
        2023,
        "Testing for outliers with conformal p-values",
        **_article("The Annals of Statistics", "51", "149--178", "1"),
        doi="10.1214/22-AOS2244",
    ),
    Reference(
        "Benjamini, Yoav; Hochberg, Yosef",
        1995,
        "Controlling the false discovery rate: a practical and powerful approach to multiple "
        "testing",
        **_article("Journal of the Royal Statistical Society: Series B", "57", "289--300", "1"),
        doi="10.1111/j.2517-6161.1995.tb02031.x",
    ),
    Reference(
        "Benjamini, Yoav; Yekutieli, Daniel",
        2001,
        "The control of the false discovery rate in multiple testing under dependency",
        **_article("The Annals of Statistics", "29", "1165--1188", "4"),
        doi="10.1214/aos/1013699998",
    ),
    Reference(
        "Brechtmann, Felix; Mertes, Christian; Matusevičiūtė, Agnė; Yépez, Vicente A.; Avsec, Žiga;"
        " Herzog, Maximilian; Bader, Daniel M.; Prokisch, Holger; Gagneur, Julien",
        2018,
        "OUTRIDER: a statistical method for detecting aberrantly expressed genes in RNA sequencing "
        "data",
        **_article("The American Journal of Human Genetics", "103", "907--917", "6"),
        doi="10.1016/j.ajhg.2018.10.025",
    ),
    Reference(
        "Burda, Yuri; Grosse, Roger; Salakhutdinov, Ruslan",
        2016,
        "Importance weighted autoencoders",
        **_proceedings(ICLR),
        arxiv="1509.00519",
    ),
    Reference(
        "Cremer, Chris; Li, Xuechen; Duvenaud, David",
        2018,
        "Inference suboptimality in variational autoencoders",
        **_icml("1078--1086"),
        arxiv="1801.03558",
    ),
    Reference(
        "Dilokthanakul, Nat; Mediano, Pedro A. M.; Garnelo, Marta; Lee, Matthew C. H.; "
        "Salimbeni, Hugh; Arulkumaran, Kai; Shanahan, Murray",
        2016,
        "Deep unsupervised clustering with Gaussian mixture variational autoencoders",
        arxiv="1611.02648",
    ),
    Reference(
        "Fu, Hao; Li, Chunyuan; Liu, Xiaodong; Gao, Jianfeng; Celikyilmaz, Asli; Carin, Lawrence",
        2019,
        "Cyclical annealing schedule: a simple approach to mitigating KL vanishing",
        **_proceedings(
            "Proceedings of the 2019 Conference of the North American Chapter of the Association "
            "for Computational Linguistics",
            "240--250",
        ),
        arxiv="1903.10145",
    ),
    Reference(
        "Gavish, Matan; Donoho, David L.",
        2014,
        "The optimal hard threshold for singular values is 4/sqrt(3)",
        **_article("IEEE Transactions on Information Theory", "60", "5040--5053", "8"),
        doi="10.1109/TIT.2014.2323359",
    ),
    Reference(
        "Hong, David; Sheng, Yue; Dobriban, Edgar",
        2020,
        "Selecting the number of components in PCA via random signflips",
        arxiv="2012.02985",
    ),
    Reference(
        "Kim, Yoon; Wiseman, Sam; Miller, Andrew C.; Sontag, David; Rush, Alexander M.",
        2018,
        "Semi-amortized variational autoencoders",
        **_icml("2678--2687"),
        arxiv="1802.02550",
    ),
    Reference(
        "Kingma, Diederik P.; Welling, Max",
        2014,
        "Auto-encoding variational Bayes",
        **_proceedings(ICLR),
        arxiv="1312.6114",
    ),
    Reference(
        "Liu, Yaowu; Xie, Jun",
        2020,
        "Cauchy combination test: a powerful test with analytic p-value calculation under "
        "arbitrary dependency structures",
        **_article("Journal of the American Statistical Association", "115", "393--402", "529"),
        doi="10.1080/01621459.2018.1554485",
    ),
    Reference(
        "Lopez, Romain; Regier, Jeffrey; Cole, Michael B.; Jordan, Michael I.; Yosef, Nir",
        2018,
        "Deep generative modeling for single-cell transcriptomics",
        **_article("Nature Methods", "15", "1053--1058", "12"),
        doi="10.1038/s41592-018-0229-2",
    ),
    Reference(
        "Marandon, Ariane; Lei, Lihua; Mary, David; Roquain, Etienne",
        2024,
        "Adaptive novelty detection with false discovery rate guarantee",
        **_article("The Annals of Statistics", "52", "157--183", "1"),
        doi="10.1214/23-AOS2338",
    ),
    Reference(
        "McInnes, Leland; Healy, John; Saul, Nathaniel; Großberger, Lukas",
        2018,
        "UMAP: uniform manifold approximation and projection",
        **_article("Journal of Open Source Software", "3", "861", "29"),
        doi="10.21105/joss.00861",
    ),
    Reference(
        "Mölder, Felix; Jablonski, Kim Philipp; Letcher, Brice; Hall, Michael B.; "
        "Tomkins-Tinch, Christopher H.; Sochat, Vanessa; Forster, Jan; Lee, Soohyun; "
        "Twardziok, Sven O.; Kanitz, Alexander; Wilm, Andreas; Holtgrewe, Manuel; Rahmann, Sven; "
        "Nahnsen, Sven; Köster, Johannes",
        2021,
        "Sustainable data analysis with Snakemake",
        **_article("F1000Research", "10", "33"),
        doi="10.12688/f1000research.29032.2",
    ),
    Reference(
        "Perez, Ethan; Strub, Florian; de Vries, Harm; Dumoulin, Vincent; Courville, Aaron",
        2018,
        "FiLM: visual reasoning with a general conditioning layer",
        **_proceedings("Proceedings of the AAAI Conference on Artificial Intelligence"),
        arxiv="1709.07871",
    ),
    Reference(
        "Platt, John C.",
        1999,
        "Probabilistic outputs for support vector machines and comparisons to regularized "
        "likelihood methods",
        "incollection",
        (
            ("booktitle", "Advances in large margin classifiers"),
            ("publisher", "MIT Press"),
            ("pages", "61--74"),
        ),
    ),
    Reference(
        "Stuart, Tim; Butler, Andrew; Hoffman, Paul; Hafemeister, Christoph; Papalexi, Efthymia; "
        "Mauck, William M.; Hao, Yuhan; Stoeckius, Marlon; Smibert, Peter; Satija, Rahul",
        2019,
        "Comprehensive integration of single-cell data",
        **_article("Cell", "177", "1888--1902.e21", "7"),
        doi="10.1016/j.cell.2019.05.031",
    ),
    Reference(
        "Tomczak, Jakub M.; Welling, Max",
        2018,
        "VAE with a VampPrior",
        **_proceedings(
            "Proceedings of the 21st International Conference on Artificial Intelligence and "
            "Statistics",
            "1214--1223",
            series=PMLR,
            volume="84",
        ),
        arxiv="1705.07120",
    ),
    Reference(
        "van den Brink, Susanne C.; Sage, Fanny; Vértesy, Ábel; Spanjaard, Bastiaan; "
        "Peterson-Maduro, Josi; Baron, Chloé S.; Robin, Catherine; van Oudenaarden, Alexander",
        2017,
        "Single-cell sequencing reveals dissociation-induced gene expression in tissue "
        "subpopulations",
        **_article("Nature Methods", "14", "935--936", "10"),
        doi="10.1038/nmeth.4437",
    ),
    Reference(
        "Wolf, F. Alexander; Angerer, Philipp; Theis, Fabian J.",
        2018,
        "SCANPY: large-scale single-cell gene expression data analysis",
        **_article("Genome Biology", "19", "15"),
        doi="10.1186/s13059-017-1382-0",
    ),
)


def is_cited(reference: str, text: str) -> bool:
    """Whether the text names the first author and, next of all numbers in the sentence, the year.

    ``reference`` begins as it is cited: ``Wolf et al. 2018, SCANPY``.
    """
    author, year = re.match(r"(.*?)(?:,| &| et al\.| (?=\d)).*?(\d{4}),", reference).groups()
    text = text.replace("et al.", "et al")
    return re.search(rf"\b{re.escape(author)} [^.();\d]*\(?{year}", text) is not None


def cited_in(text: str) -> list[Reference]:
    """The references that a text cites, in the order of their authors."""
    return [reference for reference in REFERENCES if is_cited(str(reference), text)]
