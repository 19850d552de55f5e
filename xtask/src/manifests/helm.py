"""Renders the chart once for each line of standard input, which is a JSON object of values.

Prints a line of JSON for each: {"rendered": {template: text}} or {"refused": why}. Findings of the linter come first.
"""

import json
import sys

import helm_python as helm

chart = sys.argv[1]
found = helm.lint(chart, strict=True)
print(json.dumps([one for one in found["messages"] if one["severity"] > 1]))
for line in sys.stdin:
    try:
        rendered = helm.Chart.load(chart).render(json.loads(line), name="detector", namespace="detector")
        print(json.dumps({"rendered": rendered}))
    except (helm.HelmValuesError, helm.HelmRenderError) as error:
        print(json.dumps({"refused": str(error)}))
