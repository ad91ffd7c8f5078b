//! Whole studies with a tiny real trainer: built, loaded, trained, examined, judged, recorded.
//!
//! A study runs its own program again as worker, and a program of the standard test harness cannot
//! begin with `run_if_worker`, so this one brings its harness along.

mod agents;
mod ahead;
mod asking;
mod budgeting;
mod card;
mod chatting;
mod comparing;
mod compiling;
mod containment;
mod ending;
mod exam;
mod inputs;
mod language;
mod loading;
mod looping;
mod mcp;
mod objective;
mod outcomes;
mod proposing;
mod racing;
mod reported;
mod scripted;
mod surviving;
mod template;
mod tiny;

use libtest_mimic::{Arguments, Trial};

macro_rules! tests {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        vec![$($(Trial::test(
            concat!(stringify!($module), "::", stringify!($name)),
            || { $module::$name(); Ok(()) },
        )),*),*]
    };
}

fn main() {
    overnight::worker::run_if_worker();
    surviving::run_if_victim();
    let tests = tests![
        agents:
            aider_edits_the_trainer,
            claude_edits_the_trainer,
            codex_edits_the_trainer,
            gemini_edits_the_trainer,
            opencode_edits_the_trainer,
            pi_edits_the_trainer;
        ahead:
            a_proposer_thinks_while_a_trial_runs_and_is_rebased_where_that_is_kept,
            a_proposal_that_contradicts_the_trial_before_is_asked_for_again,
            a_trial_is_on_record_while_somebody_still_thinks_about_the_next,
            failures_ahead_are_told_and_harm_no_trial,
            an_allowance_counts_the_trial_that_runs,
            during_a_control_run_the_trial_after_it_is_thought_about,
            repairs_of_either_trial_go_to_its_author,
            who_does_not_think_is_asked_when_all_is_known,
            an_agent_thinks_ahead_of_a_trainer,
            beside_a_trial_on_a_card_the_next_one_is_built;
        asking:
            several_trials_may_be_open_and_end_in_any_order,
            what_is_told_has_a_score_or_a_reason,
            a_trial_that_was_begun_is_taken_up_again,
            a_proposal_from_outside_is_evaluated_or_waits_in_line,
            a_night_ends_for_a_reason,
            a_paused_study_begins_nothing_until_it_may_go_on;
        budgeting:
            training_outside_of_the_budget_does_not_count,
            without_bounds_it_does,
            a_study_that_is_reopened_knows_what_the_baseline_needed,
            a_trainer_sees_no_more_than_it_was_handed;
        card:
            a_card_is_known_by_its_driver_and_another_one_is_refused,
            a_card_that_cannot_be_used_is_named,
            names_of_sockets_are_a_workers_own,
            a_trainer_is_compiled_for_a_card_apart_from_others,
            what_a_driver_says_goes_back_in_words,
            where_a_driver_lists_no_processes_the_memory_in_use_tells,
            what_is_missing_to_compile_for_a_card_is_said_before_anything_is_prepared;
        chatting:
            a_chat_model_completes_a_study;
        comparing:
            contenders_take_turns_and_the_better_one_is_named,
            a_comparison_that_was_stopped_goes_on;
        compiling:
            a_compiler_dies_with_its_study,
            a_worker_dies_with_its_study,
            no_secret_of_the_environment_reaches_a_compiler;
        containment:
            a_trainer_reaches_nothing_that_it_has_no_business_with,
            the_rooms_of_the_exam_pass_no_notes,
            the_rooms_of_the_exam_leave_no_marks,
            what_is_in_memory_of_a_file_tells_the_other_room_nothing,
            what_is_said_over_the_exams_questions_reaches_no_proposer,
            unsafe_code_marks_nothing_either,
            a_trainer_leaves_the_users_files_as_they_are,
            what_the_caller_left_open_is_closed_in_a_worker,
            weights_that_are_a_link_are_none,
            no_lie_survives_the_exam;
        ending:
            an_agent_and_its_daemons_die_with_their_study,
            a_study_that_is_asked_to_end_does_so_well,
            a_study_under_nohup_takes_no_notice_of_a_hangup;
        exam:
            an_oracle_scores_the_entropy_rate_of_its_language,
            a_uniform_trainer_scores_the_logarithm_of_the_vocabulary;
        inputs:
            a_folder_without_the_edited_file_is_no_trainer,
            a_study_of_another_configuration_is_refused,
            a_second_process_on_one_study_is_refused,
            a_program_that_is_no_worker_is_named,
            a_corpus_too_small_to_split_is_refused;
        loading:
            two_artifacts_load_two_trainers,
            a_crate_is_built_with_its_own_parts,
            a_library_that_is_no_trainer_is_refused;
        looping:
            better_trials_are_kept_and_others_leave_no_trace,
            a_study_that_is_reopened_goes_on_where_it_stopped,
            a_study_under_step_budgets_is_repeatable,
            the_tuner_improves_the_tiny_trainer,
            a_closure_proposes_and_an_observer_hears_everything,
            the_same_source_is_not_tried_twice,
            a_wall_clock_budget_is_spent_to_its_end,
            a_stopped_study_records_nothing_of_the_trial_in_flight,
            a_recorded_trial_is_measured_again_to_the_bit,
            the_gain_of_a_night_is_certified_under_fresh_seeds,
            a_change_that_only_luck_speaks_for_is_dropped_by_the_certificate,
            the_significant_rule_repeats_what_it_cannot_tell,
            a_change_that_starts_from_other_weights_or_batches_is_seen_to,
            kept_trials_are_scored_on_the_test_split_and_tell_if_they_hear_the_seed;
        mcp:
            a_pulled_handle_ends_a_conversation_whose_agent_is_still_there,
            an_agent_drives_a_study_over_mcp,
            an_agent_that_comes_back_finds_the_study_as_it_left_it;
        objective:
            a_command_is_minimized_or_maximized,
            a_command_fails_in_its_own_ways,
            what_a_command_changes_beside_the_edited_file_is_put_back,
            the_tuner_turns_the_constants_of_any_rust_file,
            a_python_trainer_runs_as_it_is;
        outcomes:
            every_misdeed_has_its_outcome,
            a_trainer_that_hangs_is_killed_with_its_children,
            what_a_trainer_starts_or_leaves_out_is_its_own_loss,
            a_step_that_outlasts_the_grace_is_killed,
            a_scratch_folder_has_a_limit,
            a_study_that_allows_unsafe_code_survives_it,
            a_trainer_of_another_layout_is_refused,
            output_without_end_leaves_a_log_of_bounded_size,
            code_that_does_not_compile_comes_back_with_the_compilers_words,
            unsafe_code_does_not_compile,
            a_baseline_that_fails_ends_the_study,
            memory_has_an_end,
            a_source_that_includes_what_is_not_its_own_does_not_compile,
            what_breaks_the_compiler_is_a_trial_that_failed,
            a_compiler_without_end_is_killed,
            a_loss_that_is_no_number_ends_the_trial_before_its_budget;
        proposing:
            what_does_not_compile_crashes_or_repeats_goes_back_to_its_author,
            repairs_end_and_then_the_trial_counts,
            an_agent_edits_the_trainer,
            a_night_goes_on_when_an_agent_stops,
            a_failing_proposer_is_asked_again,
            a_spent_allowance_ends_the_study_well,
            control_runs_tell_the_noise,
            the_judge_says_what_it_believes_and_remembers_it;
        racing:
            a_trial_that_is_far_behind_is_stopped_and_one_ahead_is_kept,
            without_a_race_everybody_comes_in,
            a_trainer_that_lies_about_its_loss_gains_nothing_and_harms_nobody,
            a_study_from_before_the_race_is_opened_either_way;
        reported:
            a_source_that_nests_without_end_ends_no_study,
            who_panics_ends_no_night,
            two_replays_each_know_their_own_trials,
            nobody_who_proposes_learns_the_test_score,
            an_agent_that_breaks_its_folder_finds_a_whole_one_next_time,
            an_agent_that_links_out_of_its_folder_reaches_nothing,
            an_editors_line_ends_are_no_change,
            the_callers_repository_is_nobodys_business,
            the_users_cargo_settings_change_nothing,
            a_toolchain_file_above_the_trainer_changes_nothing,
            a_script_of_the_project_runs_and_the_tuner_reads_its_language,
            a_damaged_dependency_is_compiled_anew_and_no_sources_fault,
            a_damaged_dependency_is_found_before_a_night,
            a_limit_of_the_shell_is_no_sources_fault;
        surviving:
            a_last_line_that_lacks_only_its_end_is_kept,
            trials_without_their_configuration_are_not_gone_on_with,
            what_cannot_be_a_study_is_refused_and_leaves_nothing,
            a_repository_that_a_crash_left_in_disorder_is_put_in_order,
            a_study_killed_at_any_moment_resumes,
            a_disk_that_is_full_for_the_ledger_ends_the_study_and_tears_nothing,
            a_torn_last_line_is_repaired,
            a_damaged_line_in_the_middle_is_not_thrown_away;
        template:
            the_shipped_trainers_own_tests_pass,
            its_twin_in_pytorch_computes_the_same_losses,
            the_shipped_trainer_learns_from_the_built_in_corpus,
            bf16_learns_as_much_as_f32;
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit();
}
