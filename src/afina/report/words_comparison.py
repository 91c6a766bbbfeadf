"""The texts of a comparison's recommendation and figures, in English and Brazilian Portuguese; see `words`."""

from __future__ import annotations

# key: (English, Brazilian Portuguese)
COMPARISON: dict[str, tuple[str, str]] = {
    # recommendation
    "recommendation": ("Recommendation", "Recomendação"),
    "for_accuracy": ("For accuracy", "Para acurácia"),
    "for_accuracy_text": ("For quality", "Para qualidade"),
    "for_cost": ("For cost", "Para custo"),
    "for_latency": ("For latency", "Para latência"),
    "for_explanation": ("For explanation", "Para explicação"),
    "described": (
        "{name} ({metric} {value} {interval}, US$ {cost} per 1,000 answers, p50 {latency})",
        "{name} ({metric} {value} {interval}, US$ {cost} por 1.000 respostas, p50 {latency})",
    ),
    "advice": ("{priority}: {described}.", "{priority}: {described}."),
    "advice_alone": (
        "{priority}: only one system answered, so there is nothing to choose from.",
        "{priority}: só um sistema respondeu; não há o que escolher.",
    ),
    "advice_no_reasoning": (
        "{priority}: no system here writes reasoning, so none explains its answers. A cot or negotiate strategy, or a "
        "student trained with reasoning, would.",
        "{priority}: nenhum sistema aqui escreve um raciocínio, então nenhum explica suas respostas. Uma estratégia "
        "cot ou negotiate, ou um aluno treinado com raciocínio, explicaria.",
    ),
    "advice_nothing_right": (
        "{priority}: no recommendation. Every system's {metric} is 0, so it cannot rank them.",
        "{priority}: sem recomendação. Para todos os sistemas o valor de {metric} é 0, então não os ordena.",
    ),
    "advice_too_small": (
        "{priority}: no recommendation, for this test cannot decide. {described} has the highest {metric}, but with "
        "{n} independent test items hardly any difference could reach p < 0.05. Test on more rows.",
        "{priority}: sem recomendação, pois este teste não pode decidir. {described} tem o maior valor de {metric}, "
        "mas com {n} itens de teste independentes quase nenhuma diferença chegaria a p < 0,05. Teste com mais linhas.",
    ),
    "advice_clear": (
        "The numbers decide: its {metric} is higher than every other system's. The nearest is {nearest}: {difference} "
        "{interval}, Holm p {p}.",
        "Os números decidem: seu valor de {metric} é maior que o de todos os outros. O mais próximo é {nearest}: "
        "{difference} {interval}, p de Holm {p}.",
    ),
    "advice_clear_explained": (
        "The numbers decide: its {metric} is higher than that of every other system that writes reasoning. The nearest "
        "is {nearest}: {difference} {interval}, Holm p {p}.",
        "Os números decidem: seu valor de {metric} é maior que o de todos os outros que escrevem um raciocínio. O mais "
        "próximo é {nearest}: {difference} {interval}, p de Holm {p}.",
    ),
    "advice_only": (
        "It is the only system here that writes reasoning.",
        "É o único sistema aqui que escreve um raciocínio.",
    ),
    "advice_best_of_equals": (
        "The numbers do not decide: it has the highest {metric}{also}, but {equals} {are} not shown to be worse.",
        "Os números não decidem: tem o maior valor de {metric}{also}, mas não se demonstrou que {equals} {are}.",
    ),
    "advice_instead": (
        "The numbers do not decide: {described} has the highest {metric}, but {choice} is not shown to be worse "
        "({difference} {interval}, Holm p {p}) and is {reason} of the {n} systems of which that holds: {equals}.",
        "Os números não decidem: {described} tem o maior valor de {metric}, mas não se demonstrou que {choice} seja "
        "pior ({difference} {interval}, p de Holm {p}), e ele é {reason} dos {n} sistemas de que se pode dizer o "
        "mesmo: {equals}.",
    ),
    "advice_not_equal": (
        "“Not shown to be worse” is not “as good”: the loss may be as large as the end of the interval.",
        "“Não se demonstrou que seja pior” não é “tão bom quanto”: a perda pode chegar ao extremo do intervalo.",
    ),
    "cheapest": ("the cheapest", "o mais barato"),
    "fastest": ("the fastest", "o mais rápido"),
    "fastest_of_cheapest": ("the fastest of the cheapest", "o mais rápido dos mais baratos"),
    "also": (" and is {reason}", " e é {reason}"),
    "advice_cheaper_cost": (
        "Cheaper, at a price in {metric}: {listed}.",
        "Mais baratos, ao preço de {metric}: {listed}.",
    ),
    "advice_cheaper_latency": (
        "Faster, at a price in {metric}: {listed}.",
        "Mais rápidos, ao preço de {metric}: {listed}.",
    ),
    "cheaper_cost": (
        "{name} (US$ {cost}; {difference} {interval})",
        "{name} (US$ {cost}; {difference} {interval})",
    ),
    "cheaper_latency": (
        "{name} ({latency}; {difference} {interval})",
        "{name} ({latency}; {difference} {interval})",
    ),
    "advice_explains": (
        "Without reasoning, {name} reaches {value}: the recommended one differs by {difference} {interval}, "
        "Holm p {p}.",
        "Sem raciocínio, {name} chega a {value}: o recomendado difere em {difference} {interval}, p de Holm {p}.",
    ),
    "advice_small": (
        "With {n} independent test items, small differences cannot be told from chance.",
        "Com {n} itens de teste independentes, diferenças pequenas não se distinguem do acaso.",
    ),
    "advice_basis": (
        "Rests on paired permutation tests of {best} against each other system on {metric} (n = {n}; Holm's correction "
        "over {tests}). The same answers chose {best}, so a p just below 0.05 is weaker than it looks.",
        "Baseia-se em testes de permutação pareados de {best} contra cada outro sistema em {metric} (n = {n}; correção "
        "de Holm sobre {tests}). As mesmas respostas escolheram {best}; um p logo abaixo de 0,05 vale menos do que "
        "parece.",
    ),
    "is_one": ("is", "seja pior"),
    "are_many": ("are", "sejam piores"),
    # seeds
    "seed_std": ("± {std} seeds", "± {std} sementes"),
    "seed_terms": (
        "± … seeds: the standard deviation between the values of the seeds ({n}), apart from the interval, which is "
        "over test items.",
        "± … sementes: o desvio-padrão entre os valores das sementes ({n}), à parte do intervalo, que é sobre itens de "
        "teste.",
    ),
    "seeds_counted": ("The answers of all seeds are counted.", "Contam-se as respostas de todas as sementes."),
    "seeds_note": (
        "Small dots under a bar: the value of each seed. The line through the bar is the variation over test items; "
        "the dots are the variation between trainings. ± is the standard deviation of the seeds.",
        "Pontos pequenos sob uma barra: o valor de cada semente. A linha sobre a barra é a variação entre itens de "
        "teste; os pontos são a variação entre treinos. ± é o desvio-padrão das sementes.",
    ),
    # tests
    "forest_title": ("{field}: {metric}, {difference}", "{field}: {metric}, {difference}"),
    "forest_axis": ("difference (n = {n})", "diferença (n = {n})"),
    "forest_note": (
        "Lines are 95 % intervals. ▲ better and ▼ worse are shown by the test (Holm p < 0.05); ○ no difference shown.",
        "As linhas são intervalos de 95 %. ▲ melhor e ▼ pior foram demonstrados pelo teste (p de Holm < 0,05); ○ "
        "nenhuma diferença demonstrada.",
    ),
    "minus_each": ("{reference} minus the system named", "{reference} menos o sistema nomeado"),
    "each_minus": ("the system named minus {reference}", "o sistema nomeado menos {reference}"),
    "all_tests": ("All {n} tests in figures", "Todos os {n} testes em números"),
    "by_measure_better": ("better than {b}: {names}", "melhor que {b}: {names}"),
    "by_measure_worse": ("worse than {b}: {names}", "pior que {b}: {names}"),
    "by_measure_none": (
        "no difference from {b} shown: {names}",
        "nenhuma diferença em relação a {b} demonstrada: {names}",
    ),
    "by_first_better": ("{a} is better than {names}", "{a} é melhor que {names}"),
    "by_first_worse": ("{a} is worse than {names}", "{a} é pior que {names}"),
    "by_first_none": ("no difference shown: {names}", "nenhuma diferença demonstrada: {names}"),
    # Pareto
    "pareto": ("Quality against price", "Qualidade contra preço"),
    "pareto_note": (
        "Higher and further left is better. Filled: no other system is as good for less (the stairs join these). "
        "Hollow: some system is at least as good and costs less, or better and costs no more. The vertical lines are "
        "95 % intervals: points whose lines overlap may trade places on other test items. A ring marks the "
        "recommendation, ◆ {specialist}.",
        "Mais alto e mais à esquerda é melhor. Cheio: nenhum outro sistema é tão bom por menos (a escada liga estes). "
        "Vazado: algum sistema é ao menos tão bom e custa menos, ou melhor e não custa mais. As linhas verticais são "
        "intervalos de 95 %: pontos com linhas sobrepostas podem trocar de lugar em outros itens. Um anel marca a "
        "recomendação; ◆, {specialist}.",
    ),
    "pareto_cost": ("{metric} against cost", "{metric} contra custo"),
    "pareto_latency": ("{metric} against latency", "{metric} contra latência"),
    "cost_axis": ("US$ per 1,000 answers", "US$ por 1.000 respostas"),
    "cost_axis_log": ("US$ per 1,000 answers (logarithmic)", "US$ por 1.000 respostas (logarítmico)"),
    "latency_axis": ("time of one answer, p50", "tempo de uma resposta, p50"),
    "latency_axis_log": ("time of one answer, p50 (logarithmic)", "tempo de uma resposta, p50 (logarítmico)"),
    "quality_axis": ("{metric} (share of whole answers)", "{metric} (parcela das respostas inteiras)"),
    "quality_axis_mean": ("{metric} (mean over fields)", "{metric} (média dos campos)"),
    "mean_accuracy": ("mean accuracy of the fields", "acurácia média dos campos"),
    "no_cost": (
        "Cost is not drawn: nothing was paid, and no price per hour of this machine is set "
        "(comparison.machine_usd_per_hour).",
        "O custo não é desenhado: nada foi pago, e não há preço por hora desta máquina "
        "(comparison.machine_usd_per_hour).",
    ),
    "second_view": ("The same by {metric}", "O mesmo por {metric}"),
    "at_most": ("≤ {value}", "≤ {value}"),
    # learning curve
    "curve": ("Learning curve", "Curva de aprendizado"),
    "curve_title": ("Quality against labelled rows", "Qualidade contra linhas rotuladas"),
    "curve_x": ("labelled rows for training (logarithmic)", "linhas rotuladas para o treino (logarítmico)"),
    "curve_y": ("share right", "parcela certa"),
    "curve_note": (
        "Each dot is one training with its 95 % interval over test items; the line joins the means over seeds.",
        "Cada ponto é um treino com seu intervalo de 95 % sobre itens de teste; a linha liga as médias das sementes.",
    ),
    # how answers came about
    "trails": ("How answers came about", "Como as respostas surgiram"),
    "trails_note": (
        "For some test items, what was said before the answer stood: reasoning, votes, debates. The longest first.",
        "Para alguns itens de teste, o que foi dito antes da resposta: raciocínios, votos, debates. Os mais longos "
        "primeiro.",
    ),
    "reasoning": ("reasoning", "raciocínio"),
    "trail": ("How it came about", "Como surgiu"),
    "turn": ("turn {n}", "turno {n}"),
    "sample": ("sample {n}", "amostra {n}"),
    "agrees": ("agrees", "concorda"),
    "disagrees": ("disagrees", "discorda"),
    "stands": ("this answer stands", "esta resposta vale"),
    "sureness": (
        "sure to {value}; the threshold is {threshold}",
        "certeza de {value}; o limiar é {threshold}",
    ),
    "outcome": ("outcome: {text}", "desfecho: {text}"),
    "whole_vote": (
        "the fields' majorities make no valid answer ({because}); the whole answer of one vote stands",
        "as maiorias dos campos não formam uma resposta válida ({because}); vale a resposta inteira de um voto",
    ),
    "recommended_mark": ("★ marks the recommended system.", "★ marca o sistema recomendado."),
    "recommended": ("recommended", "recomendado"),
    "no_answer": ("no answer: {error}", "sem resposta: {error}"),
}
