"""The texts of a free-text report and of a catalogue's sections, in English and Brazilian Portuguese; see `words`."""

from __future__ import annotations

# key: (English, Brazilian Portuguese)
TEXTS: dict[str, tuple[str, str]] = {
    # measures
    "chrf": ("chrF", "chrF"),
    "rouge_l": ("ROUGE-L", "ROUGE-L"),
    "bits_per_byte": ("bits per byte", "bits por byte"),
    "perplexity": ("perplexity", "perplexidade"),
    "length_ratio": ("length", "comprimento"),
    "copied_share": ("copied", "copiado"),
    "memorised_share": ("memorised", "memorizado"),
    "repetition": ("repetition", "repetição"),
    "empty_share": ("empty", "vazias"),
    "unfinished_share": ("unfinished", "inacabadas"),
    "whole_text": ("whole text", "texto inteiro"),
    "likeness": ("likeness to the gold text", "semelhança com o texto de referência"),
    "habits": ("how it writes", "como escreve"),
    "term_chrf": (
        "share of character runs in common with the gold text, recall weighing twice; 0 to 100, more is better.",
        "parcela de sequências de caracteres em comum com o texto de referência, com peso dobrado na revocação; de 0 a "
        "100, mais é melhor.",
    ),
    "term_rouge_l": (
        "F1 of the longest common sequence of words, accents kept, no stemming; 0 to 1, more is better.",
        "F1 da maior sequência comum de palavras, com acentos, sem radicalização; de 0 a 1, mais é melhor.",
    ),
    "term_bits_per_byte": (
        "how many bits the model needs for a byte of the gold text; less is better, and models of different tokenizers "
        "can be compared.",
        "quantos bits o modelo gasta por byte do texto de referência; menos é melhor, e modelos com tokenizadores "
        "diferentes podem ser comparados.",
    ),
    "term_length_ratio": (
        "characters of the answers by those of the gold texts.",
        "caracteres das respostas divididos pelos dos textos de referência.",
    ),
    "term_copied_share": (
        "of the answers' runs of 8 words, those that stand word for word in the prompt: title, passages, sources.",
        "das sequências de 8 palavras das respostas, as que estão palavra por palavra no prompt: título, trechos, "
        "fontes.",
    ),
    "term_memorised_share": (
        "of the same runs, those that stand in a training text but neither in the prompt nor in the gold text.",
        "das mesmas sequências, as que estão num texto de treino, mas nem no prompt nem no texto de referência.",
    ),
    "term_repetition": (
        "of an answer's runs of 4 words, those that it had said before: going round in circles.",
        "das sequências de 4 palavras de uma resposta, as que ela já tinha dito: andar em círculos.",
    ),
    "term_unfinished_share": (
        "answers that were ended by the token limit.",
        "respostas encerradas pelo limite de tokens.",
    ),
    # verdict
    "says_empty": ("Empty answers: {listed}.", "Respostas vazias: {listed}."),
    "says_loops": (
        "Goes round in circles (share of 4-word runs that the answer had said): {listed}.",
        "Anda em círculos (parcela das sequências de 4 palavras que a resposta já tinha dito): {listed}.",
    ),
    "says_bits": (
        "Bits per byte of the gold texts under the model (less is better): {listed}.",
        "Bits por byte dos textos de referência segundo o modelo (menos é melhor): {listed}.",
    ),
    # figures
    "chrf_axis": ("chrF, 0 to 100 (n = {n})", "chrF, de 0 a 100 (n = {n})"),
    "rouge_l_axis": ("ROUGE-L, 0 to 1 (n = {n})", "ROUGE-L, de 0 a 1 (n = {n})"),
    "bits_per_byte_axis": (
        "bits per byte of the gold texts, less is better (n = {n})",
        "bits por byte dos textos de referência, menos é melhor (n = {n})",
    ),
    "copied_share_axis": (
        "% of 8-word runs that stand in the prompt (n = {n})",
        "% das sequências de 8 palavras que estão no prompt (n = {n})",
    ),
    "memorised_share_axis": (
        "% of 8-word runs that stand in a training text (n = {n})",
        "% das sequências de 8 palavras que estão num texto de treino (n = {n})",
    ),
    "repetition_axis": (
        "% of 4-word runs that the answer had said (n = {n})",
        "% das sequências de 4 palavras que a resposta já tinha dito (n = {n})",
    ),
    "quality_axis_chrf": ("{metric} (0 to 100)", "{metric} (de 0 a 100)"),
    "quality_axis_rouge_l": ("{metric} (0 to 1)", "{metric} (de 0 a 1)"),
    # how long
    "lengths_of_answers": ("Length, variety and likelihood", "Comprimento, variedade e verossimilhança"),
    "mean_tokens": ("tokens", "tokens"),
    "mean_words": ("words", "palavras"),
    "mean_characters": ("characters", "caracteres"),
    "gold_characters": ("of the gold text", "do texto de referência"),
    "longest_copied_share": ("longest copied span", "maior trecho copiado"),
    "cut_prompt_share": ("prompt cut", "prompt cortado"),
    "distinct_1": ("distinct-1", "distinct-1"),
    "distinct_2": ("distinct-2", "distinct-2"),
    "nats_per_token": ("nats per token", "nats por token"),
    "lengths_of_answers_note": (
        "Tokens, words and characters are means per answer. Longest copied span: share of an answer's words in its "
        "longest run that stands in the prompt. Distinct-1 and -2: different words and pairs of words by their number, "
        "over all answers. Perplexity is per token, so only models of one tokenizer compare by it.",
        "Tokens, palavras e caracteres são médias por resposta. Maior trecho copiado: parcela das palavras de uma "
        "resposta na sua maior sequência que está no prompt. Distinct-1 e -2: palavras e pares de palavras diferentes "
        "sobre o total, em todas as respostas. A perplexidade é por token: só compara modelos de um mesmo tokenizador.",
    ),
    # samples
    "samples": ("Answers side by side", "Respostas lado a lado"),
    "samples_note": (
        "{n} of the {of} test items, drawn by the seed and not chosen, with every system's answer.",
        "{n} dos {of} itens de teste, sorteados pela semente e não escolhidos, com a resposta de cada sistema.",
    ),
    "gold_text": ("gold text", "texto de referência"),
    "empty_answer": ("(empty)", "(vazia)"),
    "refused_answer": ("refused", "recusou"),
    "more_characters": ("{n} more characters", "mais {n} caracteres"),
    "cited": ("sources", "fontes"),
    # a catalogue's sections
    "retrieval": ("Finding the passage", "Encontrar o trecho"),
    "retrieval_note": (
        "Of questions whose passage is known: how often it is found first, or among the first five, and the mean of "
        "1/rank (MRR). In brackets: 95 % intervals.",
        "De perguntas cujo trecho é conhecido: com que frequência ele vem primeiro, ou entre os cinco primeiros, e a "
        "média de 1/posição (MRR). Entre colchetes: intervalos de 95 %.",
    ),
    "questions": ("questions", "perguntas"),
    "recall_at_1": ("recall@1", "revocação@1"),
    "recall_at_5": ("recall@5", "revocação@5"),
    "mrr": ("MRR", "MRR"),
    "citations": ("Sources of the answers", "Fontes das respostas"),
    "citations_note": (
        "Each source that an answer names is checked: is it the right product, and does the quote stand in its "
        "passage? In brackets: 95 % intervals.",
        "Cada fonte que uma resposta nomeia é verificada: é o produto certo, e a citação está no trecho? Entre "
        "colchetes: intervalos de 95 %.",
    ),
    "citation_precision": ("precision: sources that are right", "precisão: fontes corretas"),
    "citation_first_right": ("first source is right", "primeira fonte correta"),
    "citation_recall": ("recall: questions with a right source", "revocação: perguntas com fonte correta"),
    "citation_verbatim": (
        "quotes that stand word for word in their passage",
        "citações palavra por palavra no trecho",
    ),
    "absent_products": ("Not in the catalogue", "Fora do catálogo"),
    "absent_note": (
        "Questions about products that are not in the catalogue must be refused, and those about products that are "
        "there answered. In brackets: 95 % intervals.",
        "Perguntas sobre produtos fora do catálogo devem ser recusadas; as que são sobre produtos que estão lá, "
        "respondidas. Entre colchetes: intervalos de 95 %.",
    ),
    "refusal_precision": ("refusals that were right", "recusas corretas"),
    "refusal_recall": ("absent products that were refused", "produtos ausentes recusados"),
    "absent_answered": ("present products that were answered", "produtos presentes respondidos"),
    "min_support": ("least support for an answer", "apoio mínimo para responder"),
    "num_absent": ("questions about absent products", "perguntas sobre produtos ausentes"),
    "num_present": ("questions about present products", "perguntas sobre produtos presentes"),
    "of_total": ("{hits} of {total}", "{hits} de {total}"),
    "catalogue": ("Catalogue", "Catálogo"),
    "catalogue_step": ("Step", "Etapa"),
    "rows_left": ("rows left", "linhas restantes"),
    "rows_dropped": ("dropped", "descartadas"),
    "rows_changed": ("changed", "alteradas"),
    "products": ("products", "produtos"),
    "shards": ("shards", "fragmentos"),
    "shards_used": ("shards learned from", "fragmentos aprendidos"),
    "languages": ("Languages of the contents", "Idiomas dos conteúdos"),
    "languages_axis": ("products", "produtos"),
}
