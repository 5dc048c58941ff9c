//! What all operations have in common: formats and outcomes.

wire_enum! {
    /// Image formats that operations understand.
    pub enum ImageFormat: u32 {
        /// Not given: look at the first bytes.
        Probe = 0,
        /// Raw.
        Raw = 1,
        /// qcow2, version 2 or 3.
        Qcow2 = 2,
    }
}

wire_enum! {
    /// How an operation ended.
    pub enum Outcome: u32 {
        /// It never said: the initial value of a result.
        None = 0,
        /// It ran to its end; the other fields hold.
        Done = 1,
        /// It failed; a failure record says why.
        Failed = 2,
        /// The format has no such operation (`check`: exit code 63).
        Unsupported = 3,
        /// It was cancelled.
        Cancelled = 4,
    }
}
