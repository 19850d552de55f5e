//! Techniques by their stable ids: the Kubernetes Threat Matrix, with ATT&CK's and Microsoft's.

use crate::alert::Technique;

pub static STATIC_POD: Technique = Technique {
    id: "static-pod",
    name: "Static Pod",
    tactic: "Persistence",
    attack: &["T1543.005"],
    microsoft: &["MS-TA9017"],
};

pub static DETECTOR_TAMPERING: Technique = Technique {
    id: "detector-tampering",
    name: "Impair the detector",
    tactic: "Defense Evasion",
    attack: &["T1562.001"],
    microsoft: &[],
};

pub static MALICIOUS_PAUSE: Technique = Technique {
    id: "malicious-pause-container",
    name: "Malicious Pause Container",
    tactic: "Persistence",
    attack: &["T1525", "T1543.005"],
    microsoft: &["MS-TA9012"],
};

pub static SUPPLY_CHAIN: Technique = Technique {
    id: "supply-chain-compromise",
    name: "Supply Chain Compromise",
    tactic: "Initial Access",
    attack: &["T1195.002", "T1525"],
    microsoft: &["MS-TA9002"],
};

pub static MALICIOUS_OPERATOR: Technique = Technique {
    id: "malicious-operator",
    name: "Malicious Operator",
    tactic: "Execution",
    attack: &["T1610"],
    microsoft: &["MS-TA9008"],
};

pub static CONTAINER_EXEC: Technique = Technique {
    id: "container-exec",
    name: "Exec into container",
    tactic: "Execution",
    attack: &["T1609"],
    microsoft: &["MS-TA9006"],
};

/// All of them.
pub static ALL: [&Technique; 6] =
    [&STATIC_POD, &CONTAINER_EXEC, &MALICIOUS_PAUSE, &SUPPLY_CHAIN, &DETECTOR_TAMPERING, &MALICIOUS_OPERATOR];
