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

pub static SERVICE_ACCOUNT: Technique = Technique {
    id: "container-service-account",
    name: "Container Service Account",
    tactic: "Lateral Movement",
    attack: &["T1528"],
    microsoft: &["MS-TA9016"],
};

pub static DELETE_EVENTS: Technique = Technique {
    id: "delete-kubernetes-events",
    name: "Delete Kubernetes Events",
    tactic: "Defense Evasion",
    attack: &["T1070"],
    microsoft: &["MS-TA9022"],
};

pub static MALICIOUS_ADMISSION: Technique = Technique {
    id: "malicious-admission-controller",
    name: "Malicious Admission Controller",
    tactic: "Credential Access",
    attack: &["T1546"],
    microsoft: &["MS-TA9015"],
};

pub static PUBLIC_API: Technique = Technique {
    id: "public-api-endpoint",
    name: "Public Kubernetes API Endpoint",
    tactic: "Reconnaissance",
    attack: &["T1133"],
    microsoft: &["MS-TA9005"],
};

/// All of them.
pub static ALL: [&Technique; 10] = [
    &STATIC_POD,
    &CONTAINER_EXEC,
    &MALICIOUS_PAUSE,
    &SUPPLY_CHAIN,
    &DETECTOR_TAMPERING,
    &MALICIOUS_OPERATOR,
    &SERVICE_ACCOUNT,
    &DELETE_EVENTS,
    &MALICIOUS_ADMISSION,
    &PUBLIC_API,
];
