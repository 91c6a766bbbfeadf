"""Every text of the report in English and Brazilian Portuguese, and numbers as each language writes them.

Names that come from the run (systems, fields, labels) are never translated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from afina.core.errors import AfinaError
from afina.core.progress import seconds, size
from afina.report.run_folder import finite
from afina.report.words_comparison import COMPARISON
from afina.report.words_text import TEXTS

LANGUAGES = {"en": "en", "pt": "pt-BR"}  # ours -> the lang attribute
MISSING = "–"

# key: (English, Brazilian Portuguese)
WORDS: dict[str, tuple[str, str]] = {
    "kind": ("Afina report", "Relatório Afina"),
    "contents": ("Contents", "Conteúdo"),
    "test_items": ("{n} test items", "{n} itens de teste"),
    "recipe_hash": ("recipe {hash}", "receita {hash}"),
    "verdict": ("Verdict", "Veredito"),
    "verdict_original": ("As written in report.json", "Como está em report.json"),
    "results": ("Results", "Resultados"),
    "bars": ("Comparison", "Comparação"),
    "tests": ("Statistical tests", "Testes estatísticos"),
    "confusion": ("Confusion matrices", "Matrizes de confusão"),
    "reliability": ("Reliability of confidences", "Confiabilidade das confianças"),
    "training": ("Training", "Treinamento"),
    "data": ("Data", "Dados"),
    "examples": ("Examples", "Exemplos"),
    "plan": ("Plan", "Plano"),
    "recipe": ("Recipe", "Receita"),
    "environment": ("Versions and hashes", "Versões e hashes"),
    "absent": ("Not shown: {file} is not in this run folder.", "Não mostrado: {file} não está nesta pasta."),
    "nothing": ("Not shown: {file} holds nothing to show.", "Não mostrado: {file} não traz nada a mostrar."),
    # results
    "results_note": (
        "Every system answered the same {n} unseen test items. In brackets: 95 % bootstrap interval. "
        "{mark} marks {specialist}; – means not measured.",
        "Todos os sistemas responderam aos mesmos {n} itens de teste, nunca vistos. Entre colchetes: intervalo "
        "bootstrap de 95 %. {mark} marca {specialist}; – significa não medido.",
    ),
    "the_specialist": ("the specialist", "o especialista"),
    "scroll": ("Wide table: scroll it sideways.", "Tabela larga: role para o lado."),
    "system": ("System", "Sistema"),
    "accuracy": ("accuracy", "acurácia"),
    "macro_f1": ("macro-F1", "macro-F1"),
    "exact_match": ("exact match", "acerto exato"),
    "mae": ("mean absolute error", "erro absoluto médio"),
    "valid": ("valid", "válidas"),
    "ece": ("ECE", "ECE"),
    "brier": ("Brier", "Brier"),
    "whole_answer": ("whole answer", "resposta inteira"),
    "speed": ("speed", "velocidade"),
    "p50": ("p50", "p50"),
    "p95": ("p95", "p95"),
    "answers_per_s": ("answers/s", "respostas/s"),
    "cost_of_training": ("cost", "custo"),
    "per_1000": ("US$ per 1,000", "US$ por 1.000"),
    "train_time": ("training", "treino"),
    "peak_memory": ("peak memory", "pico de memória"),
    "terms": ("What the columns mean", "O que significam as colunas"),
    "term_accuracy": ("share of answers that equal the label.", "parcela das respostas iguais ao rótulo."),
    "term_macro_f1": (
        "mean of the F1 of each label; a rare label weighs as much as a common one.",
        "média do F1 de cada rótulo; um rótulo raro pesa tanto quanto um comum.",
    ),
    "term_ece": (
        "expected calibration error: mean gap between stated confidence and accuracy; 0 is best.",
        "erro esperado de calibração: distância média entre confiança declarada e acurácia; 0 é o melhor.",
    ),
    "term_exact_match": (
        "share of items whose every field is right.",
        "parcela dos itens com todos os campos certos.",
    ),
    "term_valid": (
        "share of answers that obey the output schema.",
        "parcela das respostas que obedecem ao esquema de saída.",
    ),
    "term_latency": (
        "p50 and p95: time of one item, median and 95th percentile; asked alone, or its share of a batch's time where "
        "asking again would cost money.",
        "p50 e p95: tempo de um item, mediana e percentil 95; perguntado sozinho, ou sua parte do tempo de um lote "
        "onde perguntar de novo custaria dinheiro.",
    ),
    "usage": ("Tokens, forward passes and money", "Tokens, passagens pelo modelo e dinheiro"),
    "prompt_tokens": ("tokens read", "tokens lidos"),
    "completion_tokens": ("tokens written", "tokens escritos"),
    "forward_passes": ("forward passes", "passagens"),
    "cost_usd": ("US$ paid", "US$ pagos"),
    "requests": ("requests", "pedidos"),
    "failed_of": ("failed, of answers", "falhas, de respostas"),
    "repaired": ("repaired", "reparadas"),
    "cost_basis": ("cost counts", "o custo conta"),
    "basis_paid": ("what was paid", "o que foi pago"),
    "basis_machine": ("machine time", "tempo de máquina"),
    "basis_paid+machine": ("what was paid, and machine time", "o que foi pago e tempo de máquina"),
    "basis_none": ("nothing", "nada"),
    "term_per_1000": (
        "what 1,000 answers cost: paid to providers{machine}. Training is not in it.",
        "quanto custam 1.000 respostas: pago a provedores{machine}. O treino não entra.",
    ),
    "term_machine": (
        ", and wall time of this machine at US$ {rate} per hour",
        ", e tempo desta máquina a US$ {rate} por hora",
    ),
    "usage_note": (
        "Tokens, forward passes and requests are means per answer.",
        "Tokens, passagens e pedidos são médias por resposta.",
    ),
    "strategy": ("strategy", "estratégia"),
    "base_model": ("base model", "modelo base"),
    # comparison
    "bars_note": (
        "The bar is the value on the test items, the line through it the 95 % interval. Overlapping intervals do "
        "not decide a comparison: the paired tests below do.",
        "A barra é o valor nos itens de teste; a linha sobre ela, o intervalo de 95 %. Intervalos que se sobrepõem "
        "não decidem uma comparação: quem decide são os testes pareados abaixo.",
    ),
    "bar_title": ("{field}: {metric}", "{field}: {metric}"),
    "bar_axis": ("{metric}, 0 to 1 (n = {n})", "{metric}, de 0 a 1 (n = {n})"),
    # tests
    "tests_note": (
        "Paired permutation tests on the same items. The difference is first minus second, with its 95 % interval. "
        "Holm's correction keeps the chance of any false “better” or “worse” in this table at 5 %. “No difference "
        "shown” does not mean equal: {n} items may be too few to tell.",
        "Testes de permutação pareados sobre os mesmos itens. A diferença é o primeiro menos o segundo, com intervalo "
        "de 95 %. A correção de Holm limita a 5 % a chance de algum falso “melhor” ou “pior” nesta tabela. “Nenhuma "
        "diferença demonstrada” não quer dizer iguais: {n} itens podem ser poucos para saber.",
    ),
    "compared": ("compared", "comparação"),
    "versus": ("against", "contra"),
    "on": ("on", "em"),
    "difference": ("difference", "diferença"),
    "interval": ("95 % interval", "intervalo de 95 %"),
    "p": ("p", "p"),
    "p_holm": ("Holm p", "p de Holm"),
    "in_words": ("in words", "em palavras"),
    "better": ("better", "melhor"),
    "worse": ("worse", "pior"),
    "none": ("no difference shown", "nenhuma diferença demonstrada"),
    "says_better": ("better than {b} on {fields}", "melhor que {b} em {fields}"),
    "says_worse": ("worse than {b} on {fields}", "pior que {b} em {fields}"),
    "says_none": (
        "no difference from {b} shown on {fields}",
        "nenhuma diferença em relação a {b} demonstrada em {fields}",
    ),
    # confusion
    "confusion_note": (
        "Rows are the true labels, columns the answers. Each cell gives the number of answers and its share of the "
        "row, which is also the tint; right answers are framed.",
        "Linhas são os rótulos verdadeiros; colunas, as respostas. Cada célula traz o número de respostas e sua "
        "parcela da linha, que é também o tom; os acertos têm moldura.",
    ),
    "confusion_title": ("{field}: answers of {system} (n = {n})", "{field}: respostas de {system} (n = {n})"),
    "true_label": ("true label", "rótulo verdadeiro"),
    "answered": ("answered", "respondido"),
    "label": ("label", "rótulo"),
    "precision": ("precision", "precisão"),
    "recall": ("recall", "revocação"),
    "f1": ("F1", "F1"),
    "support": ("n", "n"),
    "per_label": ("{field}: each label (n = {n})", "{field}: cada rótulo (n = {n})"),
    "field_by_field": ("{system}, field by field", "{system}, campo a campo"),
    "no_confusion": (
        "No field here has a closed set of labels.",
        "Nenhum campo aqui tem um conjunto fechado de rótulos.",
    ),
    # reliability
    "reliability_note": (
        "Of the answers given with a confidence near x, what share was right? On the diagonal the confidence can be "
        "taken at its word; under it the model is too sure. Vertical lines are 95 % Wilson intervals. The histogram "
        "counts the answers in each range.",
        "Das respostas dadas com confiança perto de x, que parcela estava certa? Na diagonal, a confiança merece "
        "crédito; abaixo dela, o modelo está seguro demais. Linhas verticais são intervalos de Wilson de 95 %. O "
        "histograma conta as respostas em cada faixa.",
    ),
    "reliability_title": ("{field}: confidence of {system}", "{field}: confiança de {system}"),
    "confidence": ("confidence", "confiança"),
    "confidence_axis": ("stated confidence (probability)", "confiança declarada (probabilidade)"),
    "accuracy_axis": ("accuracy (share right)", "acurácia (parcela certa)"),
    "count_axis": ("answers", "respostas"),
    "no_reliability": ("No system gave confidences.", "Nenhum sistema deu confianças."),
    # training
    "loss_title": ("Loss while training", "Perda durante o treino"),
    "loss_axis": ("loss (nats per trained token)", "perda (nats por token treinado)"),
    "rate_title": ("Learning rate", "Taxa de aprendizado"),
    "rate_axis": ("learning rate", "taxa de aprendizado"),
    "step_axis": ("step (optimizer updates)", "passo (atualizações do otimizador)"),
    "train_loss": ("training", "treino"),
    "validation_loss": ("validation", "validação"),
    "calibrated_loss": ("validation, after temperature scaling", "validação, após ajuste de temperatura"),
    "best_step": ("best: step {step}", "melhor: passo {step}"),
    "best_note": (
        "The specialist is the checkpoint of step {step}, where the validation loss was lowest ({loss}).",
        "O especialista é o ponto de controle do passo {step}, onde a perda de validação foi a menor ({loss}).",
    ),
    "last_step": ("last step", "último passo"),
    "epochs": ("epochs", "épocas"),
    "elapsed": ("time", "tempo"),
    "tokens_per_s": ("median tokens/s", "mediana de tokens/s"),
    # data
    "flow": ("From file to splits", "Do arquivo às partes"),
    "read": ("rows read", "linhas lidas"),
    "rejected": ("rejected", "rejeitadas"),
    "usable": ("usable", "usáveis"),
    "train": ("train", "treino"),
    "validation": ("validation", "validação"),
    "test": ("test", "teste"),
    "reason": ("Reason for rejection", "Motivo da rejeição"),
    "rows": ("rows", "linhas"),
    "rejected_where": (
        "Each rejected row stands in data/rejected.jsonl with its line number.",
        "Cada linha rejeitada está em data/rejected.jsonl com seu número de linha.",
    ),
    "duplicates": ("Duplicates", "Duplicatas"),
    "exact": ("exact duplicates", "duplicatas exatas"),
    "near": ("near-duplicates", "quase duplicatas"),
    "clusters": ("clusters", "grupos"),
    "conflicting": ("clusters with conflicting labels", "grupos com rótulos em conflito"),
    "leakage": ("Leakage between splits", "Vazamento entre as partes"),
    "max_similarity": ("largest similarity found", "maior semelhança encontrada"),
    "pairs_above": ("pairs above the threshold", "pares acima do limiar"),
    "removed": ("rows removed", "linhas removidas"),
    "labels": ("Labels in each split: {field}", "Rótulos em cada parte: {field}"),
    "lengths": ("Length of the examples", "Comprimento dos exemplos"),
    "lengths_note": (
        "Tokens of one example, answer included. {n} longer than max_length.",
        "Tokens de um exemplo, resposta incluída. {n} acima de max_length.",
    ),
    "tokens": ("tokens", "tokens"),
    "sources": ("Sources", "Fontes"),
    "file": ("file", "arquivo"),
    "format": ("format", "formato"),
    "encoding": ("encoding", "codificação"),
    "notes": ("notes", "notas"),
    "total": ("total", "total"),
    # examples
    "examples_note": (
        "Test items and what {system} answered. Wrong answers first, the most confident ones on top.",
        "Itens de teste e o que {system} respondeu. Primeiro as erradas, as mais confiantes no topo.",
    ),
    "wrong": ("Wrong in at least one field", "Erradas em pelo menos um campo"),
    "right": ("Right in every field", "Certas em todos os campos"),
    "more": ("{n} more", "mais {n}"),
    "field": ("field", "campo"),
    "gold": ("label", "rótulo"),
    "answer": ("answer", "resposta"),
    "item": ("item {id}", "item {id}"),
    # plan
    "parameters": ("parameters", "parâmetros"),
    "trainable": ("trainable", "treináveis"),
    "steps": ("steps", "passos"),
    "estimated": ("estimated time", "tempo estimado"),
    "measured": ("measured time", "tempo medido"),
    "memory_title": ("Planned memory by part", "Memória planejada por parte"),
    "memory_axis": ("memory (total {total})", "memória (total {total})"),
    "recipe_note": (
        "Every setting of this run, defaults included.",
        "Todas as opções desta execução, inclusive as padrão.",
    ),
    "versions": ("versions", "versões"),
    "machine": ("machine", "máquina"),
    "hashes": ("hashes", "hashes"),
    "made_by": (
        "Made by Afina from the files of this run folder. The page needs no network.",
        "Feito pelo Afina a partir dos arquivos desta pasta. A página não precisa de rede.",
    ),
    **COMPARISON,
    **TEXTS,
}


@dataclass(frozen=True)
class Language:
    """One language of the report: `language("key", name=value)` gives the text."""

    code: str = "en"

    def __post_init__(self) -> None:
        if self.code not in LANGUAGES:
            raise AfinaError(f"report language: found {self.code!r}, expected one of {sorted(LANGUAGES)}.")

    def __call__(self, key: str, **values: object) -> str:
        return WORDS[key][list(LANGUAGES).index(self.code)].format(**values)

    @property
    def attribute(self) -> str:
        return LANGUAGES[self.code]

    def _point(self, text: str) -> str:
        """English 1,234.5 as this language writes it."""
        return text.translate(str.maketrans(",.", ".,")) if self.code == "pt" else text

    def number(self, value: Any, digits: int = 2) -> str:
        if not finite(value):
            return MISSING
        return self._point(f"{round(value, digits) or 0.0:,.{digits}f}")  # what rounds to zero has no sign

    def count(self, value: Any) -> str:
        return self.number(value, 0)

    def signed(self, value: Any, digits: int = 3) -> str:
        """With its sign; U+2212 so that plus and minus are of one width."""
        if not finite(value):
            return MISSING
        if not round(value, digits):
            return self.number(0, digits)
        return self._point(f"{value:+,.{digits}f}").replace("-", "\u2212")

    def interval(self, bounds: Any, digits: int = 2) -> str:
        """[low, high], or nothing where there is none."""
        if not isinstance(bounds, list | tuple) or len(bounds) != 2 or not all(finite(b) for b in bounds):
            return ""
        low, high = (self.number(b, digits).replace("-", "\u2212") for b in bounds)
        return f"[{low}{'; ' if self.code == 'pt' else ', '}{high}]"

    def p_value(self, value: Any) -> str:
        if not finite(value):
            return MISSING
        return self._point("< 0.001") if value < 0.001 else self.number(value, 3 if value < 0.1 else 2)

    def percent(self, share: Any, digits: int = 1) -> str:
        if not finite(share):
            return MISSING
        # 99.96 % of valid answers must not read as 100 %.
        text = f"{100 * share:.{digits}f}"
        if 0 < share < 1 and float(text) in (0.0, 100.0):
            text = f"{100 * share:.3g}" if share < 0.5 else f">{100 - 10**-digits:.{digits}f}"
        return self._point(text.removesuffix("." + "0" * digits)) + " %"

    def duration(self, value: Any) -> str:
        """A time in seconds, in the unit a person reads."""
        if not finite(value):
            return MISSING
        if value == 0:
            return "0 s"
        if value < 0.001:
            return self._point("< 1 ms" if value < 0.0001 else f"{1000 * value:.1f} ms")
        if value < 1:
            return self._point(f"{1000 * value:.3g} ms" if value < 0.1 else f"{1000 * value:.0f} ms")
        return self._point(seconds(value))

    def bytes(self, value: Any) -> str:
        return self._point(size(value)) if finite(value) else MISSING

    def money(self, value: Any) -> str:
        """US dollars with the digits that a small price needs."""
        if not finite(value):
            return MISSING
        if value == 0:
            return "0"
        return self.number(value, 2 if value >= 1 else min(8, 1 - math.floor(math.log10(value))))

    def short(self, value: float) -> str:
        """An axis tick: few digits, no exponent where none is needed."""
        text = f"{value:.4g}"
        if "e" in text:
            mantissa, exponent = text.split("e")
            return f"{self._point(mantissa)}e{int(exponent)}".replace("-", "\u2212")
        return self._point(text).replace("-", "\u2212")

    def join(self, items: list[str]) -> str:
        """a, b and c."""
        last = " e " if self.code == "pt" else " and "
        return last.join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else ""
